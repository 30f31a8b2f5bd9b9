"""Measures cases and prints one JSON object a line. A process of its own, because NumPy reads its environment once.

`python benches/worker.py [--only REGEX] [--peers REGEX | --no-peers] [--isas] [--shape ROWS COLS] [--rounds N]`
"""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from cases import STANDARD, Case, cases
from measure import ROUNDS, Side, interleave, probes, ratio

import fastsparse as fs
from fastsparse import _core

# Plain x86 takes up to a second for what the others do in twenty milliseconds.
SCALAR_ROUNDS = 2
# Of a case's name: what is measured with every instruction set.
EVERY_ISA = re.compile(r"(?!.*(fresh|compress-block))(?!.*-(75|90)-)")


def switched(isa: str, threads: int) -> Callable[[], None]:
    def before() -> None:
        _core.set_isa(isa)
        fs.set_num_threads(threads)

    return before


def sides_of(case: Case, rounds: int, isas: bool, peer_names: str | None) -> list[Side]:
    best = _core.available_isas()[-1]
    sides = [replace(side, rounds=rounds) for side in probes(case.data)]
    sides.append(Side("ours", case.ours, rounds, switched(best, 2)))
    sides += [Side(name, run, rounds) for name, run in case.beside.items()]
    for isa in reversed(_core.available_isas()) if isas else [best]:
        for threads in (2, 1):
            if (isa, threads) != (best, 2):
                few = min(rounds, SCALAR_ROUNDS) if isa == "scalar" else rounds
                sides.append(Side(f"{isa} {threads}", case.ours, few, switched(isa, threads)))
    for peer in case.peers:
        if peer_names is not None and re.search(peer_names, peer.name):
            sides.append(Side(peer.name, peer.run, min(rounds, peer.rounds)))
    return sides


def measured(name: str, case: Case, sides: list[Side]) -> dict[str, Any]:
    running = {side.name for side in sides}
    for peer in case.peers:
        if peer.name in running:
            peer.check(case.ours(), peer.run())
    times = interleave(sides)
    _core.set_isa(_core.available_isas()[-1])
    fs.set_num_threads(None)
    return {
        "name": name,
        "kernel": case.kernel,
        "detail": case.detail,
        "dtype": case.dtype,
        "moved": case.moved,
        "bytes": case.data.nbytes,
        "peers": [peer.name for peer in case.peers if peer.name in running],
        "targets": [vars(target) for target in case.targets],
        "ms": {side: 1e3 * median(spent) for side, spent in times.items()},
        "over_ours": {side: ratio(times, side, "ours") for side in times},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--peers", default="")
    parser.add_argument("--no-peers", dest="peers", action="store_const", const=None)
    parser.add_argument("--isas", action="store_true")
    parser.add_argument("--shape", type=int, nargs=2, default=STANDARD)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    # Memory that a virtual machine has never touched is slow the first time.
    np.ones(3 << 30, np.uint8)
    for name, make in cases(tuple(options.shape)):
        if re.search(options.only, name):
            case = make()
            isas = options.isas and bool(EVERY_ISA.match(name))
            print(json.dumps(measured(name, case, sides_of(case, options.rounds, isas, options.peers))), flush=True)


if __name__ == "__main__":
    main()
