#!/usr/bin/env python3
"""Real processes give the bits of embedded mode (--combine per_expert), log-probability by log-probability, under eight streams
of four deployments: over each fabric, with 1 to 7 workers, one or two routers, replicas, every placement, while a deployment comes and goes,
and while experts move.

usage: bits_test.py BIN_DIR [ucx|mpi]...
"""
import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from chaos import NAME, Chaos, Up  # noqa: E402
from moiety_cluster import call, wait_until, write_subset  # noqa: E402

ANSWERS = 16
FLEETS = {
    "ucx": [["--workers", "1"], ["--workers", "2"], ["--workers", "3", "--routers", "2"], ["--workers", "4"],
            ["--workers", "7", "--placement", "eplb"], ["--workers", "4", "--replicas", "2", "--capacity", "40"],
            ["--workers", "2", "--router-expert-bytes", "8m"], ["--workers", "4", "--capacity", "24", "--placement", "id"]],
    "mpi": [["--workers", "1"], ["--workers", "2", "--placement", "round_robin"], ["--workers", "3", "--routers", "2"],
            ["--workers", "4", "--placement", "id"], ["--workers", "7"],
            ["--workers", "4", "--capacity", "24", "--placement", "eplb_hierarchical"]],
}


def owners(up):
    """(layer, expert) -> workers, of the published epoch."""
    code, placement = call("GET", up.admin + "/v1/placement")
    assert code == 200, placement
    return {(layer, expert): each for layer, experts in enumerate(placement["layers"]) for expert, each in enumerate(experts)}


def check(chaos, fabric, flags, extra):
    with Up(chaos.args.bin_dir, chaos.work, "--fabric", fabric, *flags, *chaos.deploys) as up:
        load = chaos.load(up.addresses)
        wait_until(lambda: load.finished >= ANSWERS // 2 or load.failed or load.wrong, "half of the answers", timeout=60)
        up.command("deploy", "extra", "--subset", str(extra))  # experts move while tokens flow
        up.command("undeploy", "extra")
        # All of them compute; heartbeats say so.
        wait_until(lambda: sum(w["rows_processed"] > 0 for w in up.status()["workers"]) == int(flags[1]), "all workers compute", timeout=30)
        if "--capacity" in flags and "--replicas" not in flags:  # there is room without one worker
            before = owners(up)
            up.command("drain", "0")
            assert all(0 not in each for each in owners(up).values()), "worker 0 still holds experts"
            moved = sum(before[expert] != each for expert, each in owners(up).items())
            assert moved > 0, "nothing moved"
            up.command("drain", "0", "--undo")
        wait_until(lambda: load.finished >= ANSWERS or load.failed or load.wrong, "all answers", timeout=60)
        stuck = load.stop()
        print(f"{fabric} {' '.join(flags)}: {load.finished} answers, failed {load.failed[:3]}, "
              f"wrong {load.wrong[:3]}, stuck {stuck}", flush=True)
        assert not load.failed and not load.wrong and not stuck


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bin_dir", type=Path)
    parser.add_argument("fabrics", nargs="*")
    args = parser.parse_args()
    args.seed, args.streams = 11, 8
    with tempfile.TemporaryDirectory(prefix="moiety-bits-") as folder:
        chaos = Chaos(args, Path(folder))
        extra = Path(folder) / "extra.json"
        write_subset(args.bin_dir, extra, seed=200)
        chaos.prepare()
        assert {body["model"] for body in chaos.bodies} == {NAME, *(f"{NAME}:{name}" for name in ("red", "green", "blue"))}
        for fabric in args.fabrics or FLEETS:
            for flags in FLEETS[fabric]:
                check(chaos, fabric, flags, extra)


if __name__ == "__main__":
    main()
