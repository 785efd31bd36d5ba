"""The rule that tells HBM from L2."""

from benchmarks.traffic import L2_KEEPS_BYTES, Access, Launch, Traffic, total_traffic, traffic_of_each


def launch(*accesses: Access) -> Launch:
    return Launch("", {access.tensor: access for access in accesses})


def test_a_small_tensor_is_read_from_l2_while_it_is_recent():
    write = launch(Access("H", 100, stored=100))
    read = launch(Access("H", 100, loaded=300))
    other = launch(Access("X", 50, loaded=50))
    assert traffic_of_each([write, read])[1] == Traffic(hbm=0, l2=300)
    assert traffic_of_each([write, other, read])[2] == Traffic(hbm=0, l2=300)
    assert traffic_of_each([write, other, other, read])[3] == Traffic(hbm=100, l2=200)
    assert traffic_of_each([read])[0] == Traffic(hbm=100, l2=200)


def test_a_large_tensor_comes_from_hbm_every_time():
    size = L2_KEEPS_BYTES + 1
    launches = [launch(Access("X", size, stored=size)), launch(Access("X", size, loaded=2 * size, stored=size))]
    assert total_traffic(launches) == Traffic(hbm=4 * size, l2=0)


def test_requested_bytes_know_no_cache():
    assert total_traffic([launch(Access("H", 10, loaded=70, stored=20))]).requested == 90
