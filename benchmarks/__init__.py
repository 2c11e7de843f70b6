"""What a proxied request costs, ours and its peers', in one run on one machine.

    python -m benchmarks            everything, in less than half an hour; writes results.md and chart.svg
    python -m benchmarks --quick    the main candidates, in five minutes; writes the same under .runs/

Reading order: `candidates` (who is measured, and how each is configured), `workloads` (what is asked of them),
`rounds` (how a figure comes about), `report` and `chart` (how it is shown). Everything runs on loopback, is bounded in
time, and nothing but the standard library is needed to start: peers go into an environment of their own.

To add a candidate: one entry in `candidates.py`, its app in `apps.py` or `node/`, its pin in `requirements.txt` or
`node/package.json`.
"""
