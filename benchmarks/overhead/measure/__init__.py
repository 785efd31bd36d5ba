"""Takes the times: contenders in turns, their memory, where a step spends its time, what else the machine does."""
