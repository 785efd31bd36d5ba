"""All runs and studies under a folder, live: what `lora-train board` serves and `lora-train ls` prints. No torch.

find.py    which folders are runs or studies      watch.py   the rows, kept up to date by a thread
card.py    what one row says, from its history    work.py    judges runs in a process of its own
status.py  running, ended, stopped, crashed       tail.py    what was appended to a metrics.jsonl
index.py   cards by size and time, in the cache   marks.py   tags and notes, FOLDER/.lora-board.json
table.py   rows as text                           static.py  rows in a notebook's cell
serve/     the server on 127.0.0.1                page/      what it sends

Nothing is ever written into a run.
"""
