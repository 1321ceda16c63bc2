"""The command line: `python -m benchmarks.hazards --help`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.hazards.every import HAZARDS
from benchmarks.hazards.peers import PEERS, Peer
from benchmarks.hazards.report import RESULTS, load_results, save, table
from benchmarks.hazards.run import PeerResult, Runner


def arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hazards", description="Run the hazards against uow and its peers."
    )
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peer", choices=names, action="append", help="this peer only; may be given again")
    parser.add_argument(
        "--hazard",
        choices=[each.name for each in HAZARDS],
        action="append",
        metavar="NAME",
        help="this hazard only; what is known of the others stays",
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="ENVIRONMENT=PATH",
        help="the interpreter of an environment (peers, fastapi-sqla); without one, this one",
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"the folder of the results ({RESULTS})")
    return parser.parse_args(given)


def main(given: Sequence[str]) -> None:
    options = arguments(given)
    pythons = {
        name: Path(path).absolute() for name, _, path in (each.partition("=") for each in options.python)
    }
    peers = [peer for peer in PEERS if options.peer is None or peer.name in options.peer]
    hazards = [each for each in HAZARDS if options.hazard is None or each.name in options.hazard]
    results = load_results(options.output)
    with Runner(pythons) as runner:
        for peer in peers:
            found = runner.run(peer, hazards, tell)
            results[peer.name] = found if options.hazard is None else merged(results.get(peer.name), found)
            save(results, options.output)
    print(table(results, hazards))


def merged(old: PeerResult | None, new: PeerResult) -> PeerResult:
    """A few hazards run again, put among the others; SystemExit if those were run with other versions."""
    if old is None:
        return new
    if old.versions != new.versions:
        raise SystemExit("the results are of other versions: run all hazards of this peer again")
    findings = {**old.findings, **new.findings}
    ordered = {hazard.name: findings[hazard.name] for hazard in HAZARDS if hazard.name in findings}
    return PeerResult(new.date, new.versions, ordered)


def tell(peer: Peer, text: str) -> None:
    print(f"{peer.name}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
