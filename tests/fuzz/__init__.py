"""Bytes of any kind where strangers' bytes come in, led by what they reach in the code: `make fuzz`.

`targets` says what must hold whatever comes; it runs without the fuzzer, too. `__main__` runs each for a number of
inputs in a process of its own, since the fuzzer takes over the one it runs in.
"""
