"""The loader on a CPU: shuffled and sequential epochs, windows, the first batch, waiting, memory.

    python -m benchmarks.loader [--rows 2000000 --features 64 --batch 8192 --repeats 5]

Everything runs on the same values in one process, in turns; every way's values are compared before a time is
reported. The baselines are bare: a gather of the very same rows from one contiguous matrix into one buffer
that is used again, with one thread and with as many as the loader has; and a plain copy of as many bytes. The
matrix lies in anonymous memory on huge pages; the loader reads mapped files on small ones, so a copy out of
the same mapped shards is measured too: it is the floor of anything that reads them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, TensorDataset

from featurestore.loaders import Window, open_loader
from featurestore.loaders.loader import batch_bytes
from featurestore.loaders.torch_loader import open_torch_loader
from featurestore.testing.packed_dataset import write_dataset

Matrix = npt.NDArray[np.float32]
DAY_NS = 86_400_000_000_000
STEP_S = 0.005
MEASURE = """
import json, sys
from benchmarks.loader import memory_here
print(json.dumps(memory_here(sys.argv[1], int(sys.argv[2]))))
"""


def matrix_of(rows: int, features: int) -> Matrix:
    """Random values; the first column is the row's own number (exact in float32 up to 2^24)."""
    values = np.random.default_rng(0).standard_normal((rows, features), dtype=np.float32)
    values[:, 0] = np.arange(rows)
    return values


def write(folder: Path, values: Matrix, *, days: int, entities: int, buckets: int) -> Path:
    """Write the matrix as a packed dataset, row i at time i."""
    rows, features = values.shape
    names = [f"f{i:02d}" for i in range(features)]
    times = (np.arange(rows) * (days * DAY_NS // rows)).astype(np.int64)
    users = np.random.default_rng(1).integers(0, entities, rows)
    columns: dict[str, Any] = {"user": users, "ts": pa.array(times, pa.timestamp("ns", "UTC"))}
    columns |= {name: np.ascontiguousarray(values[:, i]) for i, name in enumerate(names)}
    return write_dataset(
        folder, pa.table(columns), entity_keys=["user"], timestamp="ts", features=names, buckets=buckets
    )


def alternating(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Run every way once to warm up, then in turns; each returns its rate, and the median is kept."""
    for run in runs.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            rates[name].append(run())
    return {name: statistics.median(values) for name, values in rates.items()}


def rate_of(batches: Iterator[Any], rows: Callable[[Any], int]) -> float:
    """Rows per second of an epoch, from before the first batch to after the last."""
    total, begin = 0, time.perf_counter()
    for batch in batches:
        total += rows(batch)
    return total / (time.perf_counter() - begin)


def loader_rate(loader: Any, epoch: int = 0) -> float:
    """Rows per second of one epoch of a loader."""
    loader.set_epoch(epoch)
    return rate_of(iter(loader), lambda batch: int(batch.x.shape[0]))


def gather_rate(values: Matrix, order: list[npt.NDArray[np.int64]], threads: int) -> float:
    """Rows per second of a bare gather of the same rows in the same batches."""
    buffers = [np.empty((order[0].size, values.shape[1]), np.float32) for _ in range(threads)]

    def some(worker: int) -> None:
        for rows in order[worker::threads]:
            np.take(values, rows, axis=0, out=buffers[worker], mode="clip")

    begin = time.perf_counter()
    if threads == 1:
        some(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some, range(threads)))
    return sum(rows.size for rows in order) / (time.perf_counter() - begin)


def copy_rate(blocks: list[Matrix], batch: int, threads: int = 1) -> float:
    """Rows per second of a plain copy, batch by batch into buffers that are used again."""
    buffers = [np.empty((batch, blocks[0].shape[1]), np.float32) for _ in range(threads)]
    starts = [(b, start) for b in blocks for start in range(0, b.shape[0] - batch + 1, batch)]

    def some(worker: int) -> None:
        for block, start in starts[worker::threads]:
            np.copyto(buffers[worker], block[start : start + batch])

    begin = time.perf_counter()
    if threads == 1:
        some(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some, range(threads)))
    return len(starts) * batch / (time.perf_counter() - begin)


def mapped_blocks(loader: Any) -> list[Matrix]:
    """The matrix of every shard, in the mapped files that the loader reads."""
    source = loader.prepared.source
    column = source.column(source.manifest.packs[0].column)
    return [column.block(part) for part in range(len(source.manifest.shards))]


def dataloader_rate(values: Matrix, batch: int, batches: int = 24) -> float:
    """Rows per second of `DataLoader(TensorDataset, shuffle=True)` over its first batches."""
    made = DataLoader(TensorDataset(torch.from_numpy(values)), batch_size=batch, shuffle=True)
    taken = (b for b, _ in zip(made, range(batches), strict=False))
    return rate_of(taken, lambda b: int(b[0].shape[0]))


def check_values(loader: Any, values: Matrix) -> list[npt.NDArray[np.int64]]:
    """Compare a whole epoch with the matrix; returns the rows of every batch."""
    order = []
    loader.set_epoch(0)
    for batch in loader:
        rows = batch.x[:, 0].astype(np.int64)
        assert np.array_equal(batch.x, values[rows])
        order.append(rows)
    seen = np.concatenate(order)
    assert np.unique(seen).size == seen.size == len(loader) * order[0].size
    return order


def shuffled(folder: Path, values: Matrix, batch: int, repeats: int) -> dict[str, Any]:
    """Global shuffle: blocks over streams (the default), and one full permutation."""
    loaders = {
        f"loader, {threads} threads": open_loader(folder, batch_size=batch, threads=threads)
        for threads in (1, 2)
    }
    order = check_values(loaders["loader, 2 threads"], values)
    full = open_loader(folder, batch_size=batch, shuffle="full", threads=2)
    full_order = check_values(full, values)
    runs: dict[str, Callable[[], float]] = {n: partial(loader_rate, x) for n, x in loaders.items()}
    runs["bare gather of the same rows, 1 thread"] = lambda: gather_rate(values, order, 1)
    runs["bare gather of the same rows, 2 threads"] = lambda: gather_rate(values, order, 2)
    runs["loader, full permutation, 2 threads"] = lambda: loader_rate(full)
    runs["bare gather of the full permutation, 2 threads"] = lambda: gather_rate(values, full_order, 2)
    runs["DataLoader(TensorDataset, shuffle=True)"] = lambda: dataloader_rate(values, batch)
    rates = alternating(runs, repeats)
    ours = rates["loader, 2 threads"]
    return {
        "rows_per_s": rates,
        "ratios": {
            "to DataLoader (goal 100)": ours / rates["DataLoader(TensorDataset, shuffle=True)"],
            "to bare gather, 1 thread each (goal 0.7)": rates["loader, 1 threads"]
            / rates["bare gather of the same rows, 1 thread"],
            "to bare gather, 2 threads each (goal 0.7)": ours
            / rates["bare gather of the same rows, 2 threads"],
            "full permutation to its bare gather": rates["loader, full permutation, 2 threads"]
            / rates["bare gather of the full permutation, 2 threads"],
        },
    }


def sequential(folders: dict[str, Path], values: Matrix, batch: int, repeats: int) -> dict[str, Any]:
    """Time order, where it is the stored order (one entity) and where it interleaves many entities."""
    loaders = {
        name: open_loader(f, batch_size=batch, shuffle=False, threads=2) for name, f in folders.items()
    }
    for loader in loaders.values():
        rows = np.concatenate(check_values(loader, values))
        assert np.array_equal(rows, np.arange(rows.size))
    runs: dict[str, Callable[[], float]] = {n: partial(loader_rate, x) for n, x in loaders.items()}
    mapped = mapped_blocks(loaders[next(iter(folders))])
    copies = {
        "plain copy, 1 thread": lambda: copy_rate([values], batch),
        "plain copy, 2 threads": lambda: copy_rate([values], batch, 2),
        "plain copy of the mapped shards, 1 thread": lambda: copy_rate(mapped, batch),
        "plain copy of the mapped shards, 2 threads": lambda: copy_rate(mapped, batch, 2),
    }
    rates = alternating(runs | copies, repeats)
    return {
        "rows_per_s": rates,
        "ratios": {
            f"{name} to a {copy} (goal 0.7)": rates[name] / rates[copy] for name in folders for copy in copies
        },
    }


def windows(folder: Path, values: Matrix, repeats: int) -> dict[str, Any]:
    """Look-back windows of 64 rows: bytes produced against a plain copy of as many bytes."""
    lookback, batch, steps = 64, 512, 200
    loader = open_loader(folder, batch_size=batch, window=Window(lookback), threads=2)
    first = next(iter(loader))
    users = np.random.default_rng(1).integers(0, 100, size=len(values))
    for i in range(0, batch, 37):
        row = int(first.x[i, -1, 0])
        same = np.flatnonzero(users[: row + 1] == users[row])[-lookback:]
        held = first.window_mask[i]
        assert held.sum() == same.size
        assert np.array_equal(first.x[i][held], values[same])

    # Steady state: runs go on where the one before stopped, as a trainer does.
    loader.set_epoch(0)
    passing = iter(loader)

    def ours() -> float:
        taken = (b for _, b in zip(range(steps), passing, strict=False))
        return rate_of(taken, batch_bytes)

    buffer = np.empty((batch * lookback, values.shape[1]), np.float32)

    def plain() -> float:
        begin = time.perf_counter()
        for step in range(steps):
            start = step * buffer.shape[0] % (values.shape[0] - buffer.shape[0])
            np.copyto(buffer, values[start : start + buffer.shape[0]])
        return steps * buffer.nbytes / (time.perf_counter() - begin)

    rates = alternating({"windows, 2 threads": ours, "plain copy, 1 thread": plain}, repeats)
    ratio = rates["windows, 2 threads"] / rates["plain copy, 1 thread"]
    return {"bytes_per_s": rates, "ratios": {"windows to a plain copy (goal 0.6)": ratio}}


def on_gpu(folder: Path, values: Matrix, batch: int, repeats: int) -> dict[str, Any]:
    """Device tiers against what the bus and the memory of this very device do; skipped without one."""
    if not torch.cuda.is_available():
        return {"skipped": "torch sees no CUDA device"}
    loaders = {
        io: open_torch_loader(folder, batch_size=batch, io=io, device="cuda")
        for io in ("pinned", "resident", "gds")
    }
    for loader in loaders.values():
        for _, one_batch in zip(range(8), loader, strict=False):
            found = one_batch.x.cpu().numpy()
            assert np.array_equal(found, values[found[:, 0].astype(np.int64)])
    size = 256 << 20
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    one, other = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))

    def bytes_rate(move: Callable[[], int]) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        moved = move()
        torch.cuda.synchronize()
        return moved / (time.perf_counter() - begin)

    def copies(source: torch.Tensor) -> int:
        for _ in range(8):
            one.copy_(source, non_blocking=True)
        return 8 * size

    def epoch(loader: Any) -> int:
        loader.set_epoch(0)
        return sum(int(batch.x.nbytes) for batch in loader)

    runs: dict[str, Callable[[], float]] = {
        "pinned copy to the device": lambda: bytes_rate(lambda: copies(host)),
        "copy on the device": lambda: bytes_rate(lambda: copies(other)),
    }
    runs |= {io: (lambda x=x: bytes_rate(lambda: epoch(x))) for io, x in loaders.items()}  # type: ignore[misc]
    rates = alternating(runs, repeats)
    return {
        "device": torch.cuda.get_device_name(),
        "bytes_per_s": rates,
        "ratios": {
            "streamed to the pinned copy (goal 0.75)": rates["pinned"] / rates["pinned copy to the device"],
            "resident to a copy on the device (goal 0.3)": rates["resident"] / rates["copy on the device"],
        },
        "paths": {io: loader.io_report()["reason"] for io, loader in loaders.items()},
    }


def first_batch(folder: Path, batch: int, repeats: int) -> dict[str, Any]:
    """Seconds from opening to the first batch, checksums of the shards it touches included, kernels warm."""
    seconds: dict[str, list[float]] = {"verified": [], "not verified": []}
    for _ in range(repeats):
        for name, verify in (("verified", "auto"), ("not verified", "off")):
            begin = time.perf_counter()
            loader = open_loader(folder, batch_size=batch, verify=verify)
            next(iter(loader))
            seconds[name].append(time.perf_counter() - begin)
            loader.close()
    return {"seconds (goal 0.3)": {name: statistics.median(runs) for name, runs in seconds.items()}}


def waiting(folder: Path, batch: int) -> dict[str, Any]:
    """Share of time that a loop with steps of 5 ms waits for batches (the step sleeps, as for a device)."""
    loader = open_loader(folder, batch_size=batch)
    for step, _ in enumerate(loader):
        if step == 150:
            break
        time.sleep(STEP_S)
    stats = loader.stats()
    loader.close()
    warm = stats["wait_s"] - (stats["first_batch_s"] or 0.0)
    return {
        "wait_share with the first batch": stats["wait_share"],
        "wait_share after the first batch (goal 0.01)": warm / (warm + STEP_S * 150),
    }


def memory(folder: Path, batch: int) -> dict[str, Any]:
    """Anonymous memory over an epoch, in a process that has done nothing else.

    The budget is a tenth of the dataset; batches are dropped as they come.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(batch)], capture_output=True, text=True, check=True
    )
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def memory_here(folder: str, batch: int) -> dict[str, Any]:
    """Do it in this process; kernels are compiled before the first measurement."""
    next(iter(open_loader(folder, batch_size=64)))
    loader = open_loader(folder, batch_size=batch)
    size = sum(shard.bytes for shard in loader.prepared.source.manifest.shards)
    before, at = anonymous_bytes(), []
    for step, _ in enumerate(loader):
        if step % 16 == 0:
            at.append(anonymous_bytes() - before)
    half = len(at) // 2
    return {
        "dataset_bytes": size,
        "budget_bytes": size // 10,
        "most_bytes": max(at),
        "most_in_first_half": max(at[:half]),
        "most_in_second_half": max(at[half:]),
    }


def anonymous_bytes() -> int:
    """Memory of this process that no file backs; 0 where the system does not say."""
    status = Path("/proc/self/status")
    text = status.read_text() if status.exists() else ""
    return next((int(x.split()[1]) * 1024 for x in text.splitlines() if x.startswith("RssAnon")), 0)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run everything; prints and returns the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments)
    values = matrix_of(given.rows, given.features)
    with tempfile.TemporaryDirectory() as scratch:
        many = write(Path(scratch) / "many", values, days=5, entities=100, buckets=4)
        one = write(Path(scratch) / "one", values, days=5, entities=1, buckets=1)
        report = {
            "rows": given.rows,
            "features": given.features,
            "batch": given.batch,
            "shuffled": shuffled(many, values, given.batch, given.repeats),
            "sequential": sequential(
                {"one entity": one, "100 entities": many}, values, given.batch, given.repeats
            ),
            "windows": windows(many, values, given.repeats),
            "first batch": first_batch(many, given.batch, given.repeats),
            "waiting": waiting(many, given.batch),
            "memory": memory(many, given.batch),
            "gpu": on_gpu(many, values, given.batch, given.repeats),
        }
    print(json.dumps(report, indent=1))
    return report


if __name__ == "__main__":
    main()
