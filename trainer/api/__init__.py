"""What `import lora_train` offers to a notebook or a script. Nothing here imports torch before it trains.

settings.py    a configuration from a file or a dict, with keywords on top
train.py       trains, and leaves the process as it was
progress.py    the bar of a notebook
run.py         a run folder that shows itself
answers.py     what explain and compare give
"""
