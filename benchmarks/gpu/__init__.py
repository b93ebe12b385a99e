"""All that never ran on a GPU, in one command: python -m benchmarks.gpu [--quick] [--only WORD ...]

One line a row: what, its result, seconds, ok or the error. A row that fails does not stop the others; the exit status
is then 1. On a CPU the rows that need a GPU say that they are skipped, the others run in a small size. With a GPU it
takes under 9 minutes: what is not begun after 8 is skipped.
"""
