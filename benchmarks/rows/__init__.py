"""Which planted rows `lora-train rows` finds: bad ones among real ones, ranked by what a run recorded of them.

    python -m benchmarks.rows [--seeds 3] [--rows 1000]
    python -m benchmarks.rows --part without       a step without one of its rows, foretold and redone (without.py)
    python -m benchmarks.rows --part prediction    the norm of 8, 16 and 32 rows from steps of 4 (prediction.py)

The real rows are questions and answers made of the documentation of installed Python packages: what does a function do,
and the first sentences it is documented with. 20 rows of each kind are planted:

    swapped      the answer of another row
    garbled      the answer's letters in another order, word by word
    language     a Korean answer instead
    cut          the first half of the answer
    copy         another row with three words changed

For each kind: the area under the ROC curve (the chance that a planted row stands above a row that is not, ties half) of
the ranking, without and with --probe, and of loss and gradient norm alone, over all seeds; 95% intervals by resampling
rows. One epoch at the defaults of a run, on the CPU.
"""
