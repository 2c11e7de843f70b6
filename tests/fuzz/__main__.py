"""Run the targets with atheris, and say how many inputs, how long, how much memory, and what was found.

python -m tests.fuzz [--runs N] [TARGET …]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 100_000
FINDINGS = Path(__file__).parent / ".findings"
MEMORY, TIMEOUT = 1024, 10
"""MiB that a target may take, seconds that one input may."""


def fuzz(name: str, libfuzzer: list[str]) -> None:
    """Become the fuzzer of one target; does not return."""
    import atheris  # type: ignore[import-not-found]

    # What looks for coverage has to see the code being imported.
    with atheris.instrument_imports(include=["idp_middleware", "jwt"]):
        from tests.fuzz.targets import TARGETS

    run = next(target.run for target in TARGETS if target.name == name)
    atheris.Setup(["fuzz", *libfuzzer], run)
    atheris.Fuzz()


def main() -> int:
    from tests.fuzz.targets import TARGETS

    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Bytes of any kind, for each target.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(names)}; default all")
    parser.add_argument("--runs", type=int, default=RUNS, help="inputs for each")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(names):
        parser.error(f"no such target: {min(unknown)}")
    FINDINGS.mkdir(exist_ok=True)
    print(f"{'target':<16}{'inputs':>10}{'seconds':>9}{'peak MiB':>10}{'edges':>8}  finding", flush=True)
    failed = 0
    for target in TARGETS:
        if arguments.targets and target.name not in arguments.targets:
            continue
        with tempfile.TemporaryDirectory() as folder:
            corpus, words = Path(folder, "corpus"), Path(folder, "words")
            corpus.mkdir()
            for number, seed in enumerate(target.seeds):
                Path(corpus, str(number)).write_bytes(seed)
            words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
            options = [f"-runs={arguments.runs}", f"-dict={words}", f"-artifact_prefix={FINDINGS}/{target.name}-"]
            bounds = [f"-rss_limit_mb={MEMORY}", f"-timeout={TIMEOUT}", "-max_len=8192", "-print_final_stats=1"]
            start = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", "tests.fuzz", "--become", target.name, *options, *bounds, str(corpus)],
                capture_output=True,
                text=True,
                errors="replace",
            )
        said = done.stdout + done.stderr
        found = "" if done.returncode == 0 else "; ".join(re.findall(r"^(?:\w+Error|SUMMARY).*$", said, re.MULTILINE))
        failed += done.returncode != 0
        inputs = _last(r"stat::number_of_executed_units:\s+(\d+)", said)
        memory, edges = _last(r"stat::peak_rss_mb:\s+(\d+)", said), _last(r"cov: (\d+)", said)
        seconds = time.monotonic() - start
        print(f"{target.name:<16}{inputs:>10}{seconds:>9.0f}{memory:>10}{edges:>8}  {found or 'none'}", flush=True)
        if done.returncode:
            print(said[-4000:], file=sys.stderr)
    return min(failed, 1)


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _last(pattern: str, text: str) -> str:
    return (re.findall(pattern, text) or ["?"])[-1]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--become"]:
        fuzz(sys.argv[2], sys.argv[3:])
    sys.exit(main())
