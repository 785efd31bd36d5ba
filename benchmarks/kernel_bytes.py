"""Prints the bytes that the fused LoRA linear moves, beside what eager PEFT moves and the least anybody could.

    TRITON_INTERPRET=1 python -m benchmarks.kernel_bytes [--dropout 0]

Predicted, not measured: no GPU is needed and no time is claimed. First small layers run in Triton's interpreter, where
every byte loaded and stored is counted and must equal the formulas of fused_traffic.py. Then the formulas give the
totals at the sizes of Polyglot-Ko 12.8B and LLaMA-8B. PEFT's operators are counted by running PEFT (peft_traffic.py).
Which bytes reach HBM is one rule for both (traffic.py). Base GEMMs are in every total, each operand once.
"""

import argparse
import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from unittest import mock

import torch
from lora_train.instrument.quiet import quiet_notes

from .fused_traffic import Linear, backward, forward, grad, lower_bound
from .pass_traffic import cross_entropy, nf4_decode, stats
from .traffic import Access, Launch, Traffic, total_traffic, traffic_of_each

MIB = 1 << 20
N_TOKENS = 2048
RANKS = (8, 16, 64)
TARGET_RATIO = 0.75
TARGET_RANK = 16
TARGET_STATISTICS = 0.01
TARGET_SQUARES = 0.05

BATCHES: dict[str, tuple[int, ...]] = {
    "2 x 1024 tokens": (1024,) * 2,
    "8 x 256": (256,) * 8,
    "8 of 20 to 400": (20, 400, 74, 345, 128, 291, 182, 237),
    "32 x 64": (64,) * 32,
    "128 x 16": (16,) * 128,
    "1 x 2048": (2048,),
    "512 x 1": (1,) * 512,
}
"""Tokens of each example of a micro-batch."""

CHIPS = {
    "T4": (40, False),
    "RTX 3090": (82, True),
    "RTX 4090": (128, True),
    "H100": (132, True),
    "RTX 5090": (170, True),
}
"""Multiprocessors, by which the work is split, and whether Triton has tensor cores there; what reaches HBM is one rule
for all."""

MODELS = {
    "Polyglot-Ko 12.8B": {
        "query_key_value": (5120, 15360),
        "query_key_value, X fp32": (5120, 15360),
        "dense": (5120, 5120),
        "dense_h_to_4h": (5120, 20480),
        "dense_4h_to_h": (20480, 5120),
    },
    "LLaMA-8B": {
        "q_proj, o_proj": (4096, 4096),
        "k_proj, v_proj": (4096, 1024),
        "gate_proj, up_proj": (4096, 14336),
        "down_proj": (14336, 4096),
    },
}
"""In and out. LLaMA's linears have no bias, GPT-NeoX's have; and its LayerNorm leaves fp32 under autocast."""

# Odd sizes, several rank chunks, every mask.
CHECKED = (
    Linear(63, 130, 72, 8, torch.float16, True, True, True, 8),
    Linear(123, 300, 530, 33, torch.float16, True, True, False, 40, True),
    Linear(70, 72, 48, 100, torch.float32, False, False, True, 8),
    Linear(33, 530, 300, 16, torch.float16, False, True, True, 132),
    Linear(123, 130, 72, 8, torch.float16, True, True, True, 8, examples=(1, 70, 20, 0, 16, 16)),
    Linear(123, 300, 530, 33, torch.float16, True, True, False, 40, True, (123,)),
    Linear(70, 72, 48, 100, torch.float32, False, True, True, 8, examples=(35, 35)),
    Linear(123, 300, 530, 64, torch.float16, n_multiprocessors=40, on_tensor_cores=False, examples=(1, 70, 20, 0, 32)),
    Linear(70, 72, 48, 100, torch.float32, False, True, True, 8, on_tensor_cores=False),
)


@dataclass
class Comparison:
    """One linear at one rank."""

    fused: Traffic
    without_statistics: Traffic
    bound: int
    peft: dict[str, Traffic]

    def ratio(self, forward: str) -> float:
        return self.fused.hbm / self.peft[forward].hbm

    @property
    def statistics(self) -> float:
        """Share that statistics add to the HBM bytes."""
        return self.fused.hbm / self.without_statistics.hbm - 1


def count_fused(layer: Linear) -> list[Launch]:
    """The Triton launches of one forward and backward in the interpreter, with the bytes they move."""
    from lora_train.kernels.backend import triton_on_cpu
    from lora_train.kernels.lora_linear import launch, tiles
    from lora_train.kernels.lora_linear.group import NO_DROPOUT, Dropout, Examples, Group
    from lora_train.kernels.lora_linear.ops import cast_with_stats
    from lora_train.kernels.lora_linear.read import launches as launches_of_read
    from lora_train.kernels.statistics.pending_rows import PendingRows, Rows

    from .count_traffic import counted_traffic

    m, k, n, r, p = layer.n_tokens, layer.n_in, layer.n_out, layer.rank, 0.1 * layer.dropout
    x, dy, weight = (torch.randn(shape).to(layer.dtype) for shape in ((m, k), (m, n), (n, k)))
    bias = torch.randn(n).to(layer.dtype) if layer.bias else None
    dropout = Dropout(torch.tensor([3]), p) if layer.dropout else NO_DROPOUT
    examples = None
    if layer.examples:
        examples = Examples(layer.starts, torch.empty(len(layer.examples), 2, dtype=torch.float64))
    group = Group([weight], [bias], [torch.randn(r, k)], [torch.randn(n, r)], [2.0], dropout, examples)
    with ExitStack() as stack:
        for module in (launch, launches_of_read):
            stack.enter_context(mock.patch.object(module, "n_multiprocessors", return_value=layer.n_multiprocessors))
        stack.enter_context(mock.patch.object(tiles, "has_tensor_cores", return_value=layer.on_tensor_cores))
        stack.enter_context(triton_on_cpu())
        launches = stack.enter_context(counted_traffic())
        if layer.autocast_x:
            cast_with_stats(x.float(), layer.dtype)
        pending, slot = PendingRows(), torch.empty(6, 9, dtype=torch.float64)
        rows = [Rows(part, pending) if layer.statistics else None for part in (slot[:2], slot[2:])]
        _, h = launch.forward(x, group, rows[0])
        launch.backward([dy], x, h, group, True, rows[1])
        pending.flush()
    return launches


def triton_launches(layer: Linear) -> list[Launch]:
    """What the formulas say of the launches that `count_fused` sees: all but cuBLAS's and ATen's."""
    launches = forward(layer) + backward(layer)
    return [launch for launch in launches if not launch.name.startswith(("GEMM", "fill", "widen"))]


def moved(launches: Iterable[Launch]) -> list[dict[str, tuple[int, int, int]]]:
    """Bytes touched, loaded and stored of every argument of every launch."""
    return [{argument: (a.size, a.loaded, a.stored) for argument, a in launch.accesses.items()} for launch in launches]


def compare(layer: Linear) -> Comparison:
    from .peft_traffic import FORWARDS, count_peft

    fused = total_traffic(forward(layer) + backward(layer))
    plain = replace(layer, statistics=False)
    without = total_traffic(forward(plain) + backward(plain))
    peft = {name: total_traffic([launch for part in count_peft(layer, name) for launch in part]) for name in FORWARDS}
    return Comparison(fused, without, lower_bound(layer), peft)


def print_check() -> None:
    loaded = 0
    for layer in CHECKED:
        counted = count_fused(layer)
        if moved(counted) != moved(triton_launches(layer)):
            sys.exit(f"error: {layer}: the kernels do not move what the formulas say\nhint: pytest tests/benchmarks")
        loaded += sum(a.loaded + a.stored for launch in counted for a in launch.accesses.values())
    print(f"formulas equal the interpreter's count on {len(CHECKED)} small layers, {loaded:,} bytes, every operand\n")


def grad_by_gemm(layer: Linear) -> list[Launch]:
    """What `grad` could be instead: two GEMMs of cuBLAS and a statistics pass, LoRA weights in 16 bits for nothing."""
    m, n, r = layer.n_tokens, layer.n_out, layer.rank
    dy, b, h = m * n * 2, n * r * 2, m * r * 4

    def read_dy(name: str, operand: Access, out: Access) -> Launch:
        return Launch(name, {"dY": Access("dY", dy, dy), "operand": operand, "out": out})

    return [
        read_dy("G", Access("B", b, b), Access("G", h, 0, h)),
        read_dy("dB", Access("H", h, h), Access("dB", 2 * b, 0, 2 * b)),
        stats(m * n, torch.float16)[0],
    ]


def print_grad_choice() -> None:
    """The design's question for large ranks: one pass with partial sums, or GEMMs."""
    name, (n_in, n_out) = next(iter(MODELS["Polyglot-Ko 12.8B"].items()))
    print(f"G and dB of {name}, MiB through HBM (without any cache): one pass with partials, or two GEMMs + statistics")
    for rank in (8, 16, 32, 64, 128):
        layer = Linear(N_TOKENS, n_in, n_out, rank)
        ours, gemms = total_traffic(grad(layer)), total_traffic(grad_by_gemm(layer))
        cells = (f"{t.hbm / MIB:6.0f} ({t.requested / MIB:4.0f})" for t in (ours, gemms))
        print(f"  r={rank:<4}", *cells)
    print()


def print_launches(title: str, launches: list[Launch]) -> None:
    print(f"{title:<36}{'loaded':>9}{'stored':>9}{'HBM':>9}{'L2':>9}   MiB")
    for launch, traffic in zip(launches, traffic_of_each(launches), strict=True):
        loaded, stored = (sum(getattr(a, way) for a in launch.accesses.values()) for way in ("loaded", "stored"))
        cells = "".join(f"{value / MIB:>9.2f}" for value in (loaded, stored, traffic.hbm, traffic.l2))
        operands = ", ".join(a.tensor for a in launch.accesses.values() if a.size >= MIB // 4)
        print(f"  {launch.name:<34}{cells}   {operands}")
    traffic = total_traffic(launches)
    print(f"  {'total':<34}{'':>18}{traffic.hbm / MIB:>9.2f}{traffic.l2 / MIB:>9.2f}\n")


def print_one_linear(layer: Linear) -> None:
    """Every launch of both contenders for one linear."""
    from .peft_traffic import FORWARDS, count_peft

    for name, launches in (("forward", forward(layer)), ("backward", backward(layer))):
        print_launches(f"fused, {name}", launches)
    for peft in FORWARDS:
        for name, launches in zip(("forward", "backward"), count_peft(layer, peft), strict=True):
            print_launches(f"PEFT, {peft}, {name}", launches)


def layer_of(model: str, name: str, rank: int, dropout: bool) -> Linear:
    """One of `MODELS` at a rank."""
    n_in, n_out = MODELS[model][name]
    bias, autocast_x = model.startswith("Polyglot"), name.endswith("X fp32")
    return Linear(N_TOKENS, n_in, n_out, rank, dropout=dropout, bias=bias, autocast_x=autocast_x)


def print_largest_ratio(dropout: bool) -> None:
    """Where the target is nearest, of ranks that have one."""
    found = []
    for model, linears in MODELS.items():
        for name in linears:
            for rank in (r for r in RANKS if r <= TARGET_RANK):
                c = compare(layer_of(model, name, rank, dropout))
                found += [(c.ratio(peft), f"{model} {name}, r={rank}, PEFT on a {peft}") for peft in c.peft]
    ratio, where = max(found)
    verdict = "met" if ratio < TARGET_RATIO else "MISSED"
    print(f"lora_dropout {'on' if dropout else 'off'}: largest ratio {ratio:.3f} ({where}): target {verdict}")


def print_models(dropout: bool) -> list[str]:
    """The table of all linears; returns the targets that are missed."""
    missed = []
    print(
        f"{'linear':<26}{'r':>4}{'bound':>8}{'fused':>8}{'L2':>8}{'stats':>8}"
        f"{'PEFT16':>9}{'ratio':>7}{'no L2':>7}{'PEFT4':>9}{'ratio':>7}{'no L2':>7}"
    )
    for model, linears in MODELS.items():
        print(model)
        for name in linears:
            for rank in RANKS:
                c = compare(layer_of(model, name, rank, dropout))
                line = f"  {name:<24}{rank:>4}{c.bound / MIB:>8.0f}{c.fused.hbm / MIB:>8.0f}{c.fused.l2 / MIB:>8.0f}"
                line += f"{c.statistics:>8.3%}"
                for peft in c.peft:
                    no_l2 = c.fused.requested / c.peft[peft].requested
                    line += f"{c.peft[peft].hbm / MIB:>9.0f}{c.ratio(peft):>7.3f}{no_l2:>7.2f}"
                    if rank <= TARGET_RANK and c.ratio(peft) >= TARGET_RATIO:
                        missed.append(f"{model} {name} r={rank}: {c.ratio(peft):.2f}x of PEFT, {peft}")
                if c.statistics >= TARGET_STATISTICS:
                    missed.append(f"{model} {name} r={rank}: statistics add {c.statistics:.2%}")
                print(line)
    return missed


@dataclass(frozen=True)
class Cut:
    """What it adds to a linear that the examples are known and their squares taken: bytes, and launches."""

    n_bytes: float
    launches: int


def cut(layer: Linear, examples: tuple[int, ...]) -> Cut:
    """Of M tokens that are those of `examples`, beside the same M without."""
    m = sum(examples)
    plain, known = replace(layer, n_tokens=m), replace(layer, n_tokens=m, examples=examples)
    lists = [forward(one) + backward(one) for one in (plain, known)]
    hbm = [total_traffic(launches).hbm for launches in lists]
    return Cut(hbm[1] / hbm[0] - 1, len(lists[1]) - len(lists[0]))


def most_of_examples(chip: str, dropout: bool, examples: tuple[int, ...]) -> tuple[Cut, str]:
    """The most that squares of `examples` add to a linear of `MODELS` on a chip, and to which."""
    added, where = Cut(0.0, 0), ""
    for model, linears in MODELS.items():
        for linear in linears:
            for rank in RANKS:
                n, fast = CHIPS[chip]
                layer = layer_of(model, linear, rank, dropout)
                found = cut(replace(layer, n_multiprocessors=n, on_tensor_cores=fast), examples)
                if found.n_bytes > added.n_bytes:
                    where = f"{model} {linear} r={rank}"
                added = Cut(max(found.n_bytes, added.n_bytes), max(found.launches, added.launches))
    return added, where


def print_examples(dropout: bool) -> list[str]:
    """What squares of examples add, at most over all linears and ranks; returns what is missed."""
    print(f"what squares of examples add to a linear, at most: bytes (target: {TARGET_SQUARES:.0%}) and launches (0)")
    print(f"  {'':<18}", "".join(f"{chip:>12}" for chip in CHIPS))
    missed = []
    for name, examples in BATCHES.items():
        found = {chip: most_of_examples(chip, dropout, examples) for chip in CHIPS}
        cells = [f"{added.n_bytes:.2%} {added.launches}" for added, _ in found.values()]
        print(f"  {name:<18}", "".join(f"{cell:>12}" for cell in cells))
        missed += [
            f"squares of {name} on a {chip}: {added.n_bytes:.2%} ({where}), {added.launches} launches"
            for chip, (added, where) in found.items()
            if added.n_bytes > TARGET_SQUARES or added.launches
        ]
    print()
    return missed


def print_passes() -> None:
    n = N_TOKENS * 5120
    print_launches("tensor_stats, fp16 [2048, 5120]", stats(n, torch.float16))
    print_launches("NF4 decode [15360, 5120] to fp16", nf4_decode(15360 * 5120, 64, torch.float16))
    print_launches("loss [2048, 30080], fp16", cross_entropy(N_TOKENS, 30080, torch.float16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dropout", type=int, choices=(0, 1), default=1, help="0: as with lora_dropout: 0")
    dropout = bool(parser.parse_args().dropout)
    quiet_notes()
    if os.environ.get("TRITON_INTERPRET") != "1":
        sys.exit("error: bytes are counted in Triton's interpreter\nhint: TRITON_INTERPRET=1")
    dropped = "on" if dropout else "off"
    print(f"predicted bytes of one forward and backward, M = {N_TOKENS} tokens, fp16, lora_dropout {dropped}, 132")
    print("multiprocessors where no chip is named; nothing here was timed\n")
    print_check()
    print_passes()
    name, (n_in, n_out) = next(iter(MODELS["Polyglot-Ko 12.8B"].items()))
    print(f"every launch of {name} {n_in} -> {n_out}, r = 8\n")
    print_one_linear(Linear(N_TOKENS, n_in, n_out, 8, dropout=dropout))
    print_grad_choice()
    print(
        "MiB through HBM; L2: the fused kernels' loads that L2 serves; stats: what statistics add; PEFT16, PEFT4: eager"
    )
    print("PEFT on a 16-bit base, and on a 4-bit base already decoded; no L2: the ratio if nothing were ever cached\n")
    missed = print_models(dropout) + print_examples(dropout)
    print(f"\ntarget (r <= {TARGET_RANK}): < {TARGET_RATIO}x of eager PEFT, statistics < {TARGET_STATISTICS:.0%}")
    print("\n".join(f"MISSED  {line}" for line in missed) or "predicted to be met by every linear above")
    for either in (True, False):
        print_largest_ratio(either)


if __name__ == "__main__":
    main()
