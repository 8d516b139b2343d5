"""Kills and damages training runs on purpose, and compares what they come to with unbroken ones.

    python scripts/inject_faults.py

Each run is a short one of the MNIST examples on the embedded images, in a process of its own, with
a checkpoint after every batch. It is struck once, goes on with --resume, and its last weights are
compared with those of a run that was left alone, bit by bit. Kills, a full disk and a file that may
not grow are the system's own. Then files are damaged byte by byte and read. Writes faults.json to
--output, and the tables of docs/reliability_long_runs.md as faults.md.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import mnist_snntorch
import mnist_spikingjelly
import training

from nit_snn.datasets import Splits, idx, load, split, subset
from nit_snn.errors import CheckpointError, DatasetError
from nit_snn.training import checkpoints as checkpoint
from nit_snn.training.checkpoints import Checkpoints

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {
    "snnTorch, NIT": (mnist_snntorch.Net, "nit"),
    "snnTorch, STBP-N": (mnist_snntorch.Net, "stbp-n"),
    "SpikingJelly, NIT-S+": (mnist_spikingjelly.Net, "nit-s+"),
}
EPOCHS, BATCHES, SIZE, STEPS = 2, 8, 20, 4
FULL = Path("/dev/full")


class Shared:
    """Numbers that a killed process leaves behind: updates made, saves made, where it began."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 24)

    def __getitem__(self, place: int) -> int:
        return int(struct.unpack_from("q", self._memory, 8 * place)[0])

    def __setitem__(self, place: int, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * place, value)


UPDATES, SAVES, BEGAN = range(3)
Write = Callable[[Path, bytes], None]
#: What is done at the chosen save, given the function that writes and what it was to write.
Strike = Callable[[Write, Path, bytes, random.Random], None]


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def in_the_midst_of_writing(write: Write, path: Path, content: bytes, rng: random.Random) -> None:
    """The kernel stops the process when the file has so many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randrange(len(content)),) * 2)
    write(path, content)


def before_the_rename(write: Write, path: Path, content: bytes, rng: random.Random) -> None:
    os.replace = lambda *_: die()  # type: ignore[assignment]
    write(path, content)


def after_the_rename(write: Write, path: Path, content: bytes, rng: random.Random) -> None:
    write(path, content)
    die()


def disk_full(write: Write, path: Path, content: bytes, rng: random.Random) -> None:
    path.with_name(path.name + ".partial").symlink_to(FULL)
    write(path, content)


def may_not_grow(write: Write, path: Path, content: bytes, rng: random.Random) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randrange(len(content)),) * 2)
    write(path, content)


def flipped(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def emptied(content: bytes, rng: random.Random) -> bytes:
    return b""


STRIKES: dict[str, Strike | None] = {
    "killed at any moment": None,
    "killed in the midst of writing a checkpoint": in_the_midst_of_writing,
    "killed before a checkpoint gets its name": before_the_rename,
    "killed before older checkpoints are removed": after_the_rename,
    "disk full while a checkpoint is written": disk_full,
    "file size limit while a checkpoint is written": may_not_grow,
}
DAMAGES = {
    "killed, one bit of the newest checkpoint flipped": flipped,
    "killed, the newest checkpoint cut short": cut,
    "killed, the newest checkpoint empty": emptied,
}


def train(
    name: str,
    folder: Path,
    splits: Splits,
    shared: Shared,
    strike: Strike | None,
    at: int,
    rng: random.Random,
    resume: bool,
) -> None:
    """One run, as the examples make it; its last weights go to final.pt."""
    build, method = NETWORKS[name]
    options = argparse.Namespace(
        epochs=EPOCHS,
        batch_size=SIZE,
        steps=STEPS,
        replicas=4,
        sigma=0.5,
        lr=5e-3,
        sign_lr=2e-3,
        stbp_lr=2e-3,
        weight_decay=0.03,
        credit="none",
        residual="auto",
        conditional=False,
        sign_share=0.5,
        seed=0,
        device="cpu",
        output=folder,
        resume=resume,
        save_seconds=0,
    )
    run = training.Run(method, lambda: build(STEPS), {"lif1": options.sigma}, options)
    step, write = run.step, checkpoint.write_whole

    def counted_step(x: torch.Tensor, y: torch.Tensor) -> float:
        if shared[BEGAN] < 0:
            shared[BEGAN] = run.batches.epoch * BATCHES + run.batches.done - 1
        loss = step(x, y)
        shared[UPDATES] += 1
        return loss

    def counted_write(path: Path, content: bytes) -> None:
        shared[SAVES] += 1
        if strike is not None and shared[SAVES] == at:
            strike(write, path, content, rng)
        else:
            write(path, content)

    run.step = counted_step  # type: ignore[method-assign]
    checkpoint.write_whole = counted_write
    run.train(splits)
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in run.history]
    torch.save({"net": run.net.state_dict(), "history": history}, folder / "final.pt")


def start(shared: Shared, work: Callable[[], None]) -> int:
    """Runs it in a process of its own; its id."""
    shared[UPDATES], shared[SAVES], shared[BEGAN] = 0, 0, -1
    process = os.fork()
    if process:
        return process
    try:  # 0: done; 3: it said why it stopped; 1: anything else
        code = 0
        warnings.simplefilter("ignore")
        with open(os.devnull, "w") as none, redirect_stdout(none), redirect_stderr(none):
            work()
    except (CheckpointError, SystemExit):
        code = 3
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def finish(process: int) -> int:
    """Its exit status, negative if it was killed by that signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def equal(a: Path, b: Path) -> bool:
    """Whether two runs came to the same weights, bit by bit, and the same history."""
    one, two = (torch.load(path / "final.pt", weights_only=True) for path in (a, b))
    same = all(torch.equal(value, two["net"][name]) for name, value in one["net"].items())
    return same and one["history"] == two["history"]


def struck(
    name: str, fault: str, folder: Path, splits: Splits, shared: Shared, rng: random.Random
) -> dict[str, Any]:
    """A run that is struck once, and goes on."""
    strike = STRIKES.get(fault, after_the_rename)
    last = EPOCHS * (BATCHES + 1)
    at, seed = rng.randrange(2, last), rng.randrange(2**32)

    def work(resume: bool) -> Callable[[], None]:
        own = None if resume else strike
        return lambda: train(name, folder, splits, shared, own, at, random.Random(seed), resume)

    process = start(shared, work(False))
    if strike is None:  # at a random moment of a random batch
        wanted, wait = rng.randrange(1, EPOCHS * BATCHES), rng.uniform(0, 0.02)
        while shared[UPDATES] < wanted:
            time.sleep(0.001)
        time.sleep(wait)
        os.kill(process, signal.SIGKILL)
    stopped = finish(process)
    made = shared[UPDATES]
    if fault in DAMAGES:
        newest = Checkpoints(folder / NETWORKS[name][1]).paths[-1]
        newest.write_bytes(DAMAGES[fault](newest.read_bytes(), rng))
    ended = finish(start(shared, work(True)))
    began = shared[BEGAN] if shared[BEGAN] >= 0 else EPOCHS * BATCHES
    return {
        "network": name,
        "fault": fault,
        "stopped": stopped,
        "updates_made": made,
        "updates_lost": made - began,
        "same": ended == 0 and equal(folder, folder.parent / f"unbroken {name}"),
    }


def runs(args: argparse.Namespace, folder: Path, rng: random.Random) -> list[dict[str, Any]]:
    images, labels = load("mnist")
    parts = split(images[:2000], labels[:2000], seed=args.seed)
    counts = (BATCHES * SIZE, 100, 100)
    splits = Splits(*(TensorDataset(*p[:n]) for p, n in zip(parts, counts, strict=True)))
    shared, found = Shared(), []
    for name in args.networks:
        unbroken = folder / f"unbroken {name}"
        again = folder / f"again {name}"
        for place in (unbroken, again):
            work = partial(train, name, place, splits, shared, None, 0, rng, False)
            if finish(start(shared, work)):
                raise SystemExit(f"The unbroken run of {name} failed.")
        if not equal(unbroken, again):
            raise SystemExit(f"Two unbroken runs of {name} differ.")
        for fault in [*STRIKES, *DAMAGES]:
            if fault.startswith("disk full") and not FULL.exists():
                continue
            for number in range(args.times):
                place = folder / f"{name} {fault} {number}"
                found.append(struck(name, fault, place, splits, shared, rng))
    return found


def files(args: argparse.Namespace, folder: Path, rng: random.Random) -> list[dict[str, Any]]:
    """How many of so many damaged files are refused; each is damaged in one place."""
    torch.manual_seed(args.seed)
    net = torch.nn.Linear(784, 10)
    saved = Checkpoints(folder / "files").save(
        net=net, optimizer=torch.optim.Adam(net.parameters())
    )
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = load("mnist")
    for prefix in ("train", "t10k"):
        for kind, values in (("images-idx3", images[:50]), ("labels-idx1", labels[:50])):
            header = struct.pack(f">BBBB{values.dim()}I", 0, 0, 8, values.dim(), *values.shape)
            content = header + values.to(torch.uint8).numpy().tobytes()
            (raw / f"{prefix}-{kind}-ubyte").write_bytes(content)
    header = raw / "train-images-idx3-ubyte"
    embedded = folder / subset.file_name("mnist")
    embedded.write_bytes((ROOT / "nit_snn" / "datasets" / embedded.name).read_bytes())

    def in_header(content: bytes, rng: random.Random) -> bytes:
        return flipped(content[:16], rng) + content[16:]

    cases: list[tuple[str, Path, Callable[[Path], Any], Any]] = [
        ("checkpoint, one bit flipped", saved, checkpoint.read, flipped),
        ("checkpoint, cut short", saved, checkpoint.read, cut),
        ("embedded images, one bit flipped", embedded, subset.read_subset, flipped),
        ("embedded images, cut short", embedded, subset.read_subset, cut),
        ("MNIST's own format, a bit of the header flipped", header, idx.check_file, in_header),
        ("MNIST's own format, cut short", header, idx.check_file, cut),
    ]
    found = []
    for name, path, reading, damage in cases:
        whole, refused = path.read_bytes(), 0
        reading(path)
        for _ in range(args.files):
            path.write_bytes(damage(whole, rng))
            try:
                reading(path)
            except (CheckpointError, DatasetError):
                refused += 1
        path.write_bytes(whole)
        found.append({"file": name, "damaged": args.files, "refused": refused})
    return found


def tables(results: dict[str, Any]) -> str:
    """What docs/reliability_long_runs.md shows."""
    lines = [
        "| fault | runs struck | updates lost, at most | the same weights, bit by bit |",
        "|---|---|---|---|",
    ]
    for fault in dict.fromkeys(run["fault"] for run in results["runs"]):
        own = [run for run in results["runs"] if run["fault"] == fault]
        lost, same = max(run["updates_lost"] for run in own), sum(run["same"] for run in own)
        lines.append(f"| {fault} | {len(own)} | {lost} | {same} |")
    lines += ["", "| file | damaged | refused |", "|---|---|---|"]
    lines += [f"| {f['file']} | {f['damaged']} | {f['refused']} |" for f in results["files"]]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    add("--times", type=int, default=5, help="strikes of each kind on each network")
    add("--files", type=int, default=200, help="damaged files of each kind")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("docs/benchmarks"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        found = {"runs": runs(args, Path(folder), rng), "files": files(args, Path(folder), rng)}
    results = {
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "versions": training.installed("nit-snn", "torch", "snntorch", "spikingjelly"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {training.processor()}, 1 thread",
        "updates_of_a_run": EPOCHS * BATCHES,
        **found,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "faults.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.output / "faults.md").write_text(tables(results))
    print(tables(results))


if __name__ == "__main__":
    main()
