"""The demo's six steps. Each does real work with the public surface, and checks what it claims."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.core.compiling import announced
from featurestore.core.time import format_instant
from featurestore.demo.audit import BOOK, Audit, audit_rows, raw_rows
from featurestore.demo.bar import Bar
from featurestore.demo.folder import TickDays, deliver, write_store
from featurestore.demo.rehearsal import rehearse
from featurestore.demo.report import age_shares
from featurestore.demo.screen import Screen
from featurestore.demo.training import train_in_process
from featurestore.store import FeatureStore
from featurestore.temporal.join import asof_join

if TYPE_CHECKING:
    from featurestore.dataset import Dataset

TRAINING_SET: Final = "trade_features"
SERVICE: Final = "market_state"
AUDIT_ROWS: Final = 1000
AUDIT_SEED: Final = 11


@dataclass(slots=True)
class Demo:
    """What the steps hand on to one another."""

    screen: Screen
    ticks: TickDays
    root: Path
    store: FeatureStore
    first: pa.Table | None = None
    fingerprints: dict[int, str] = field(default_factory=dict)
    ages: list[float] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    peaks: dict[str, int] = field(default_factory=dict)

    def table(self, kind: str, columns: list[str]) -> pa.Table:
        """Read the delivered files of one kind in the order of their names."""
        files = sorted((self.root / "ticks" / kind).glob("*.parquet"))
        created = [self.ticks.created] if self.ticks.created else []
        return pa.concat_tables([pq.ParquetFile(f).read([*columns, *created]) for f in files])


def open_demo(screen: Screen, ticks: TickDays, root: Path) -> Demo:
    """Write the store's folder and let all days but the last arrive."""
    write_store(root, ticks)
    for day in ticks.days[:-1]:
        rows = deliver(ticks, day, root)
        screen.say(f"{day}: {rows:,} rows have arrived")
    return Demo(screen, ticks, root, FeatureStore(str(root)))


def define(demo: Demo) -> None:
    """Step 1: definitions in an ordinary file, a plan, version 1 of the catalog."""
    plan = demo.store.plan()
    for line in str(plan).splitlines():
        demo.screen.say(line)
    demo.store.apply(plan, message="the demo's definitions")
    head = demo.store.catalog.head
    demo.screen.check("catalog", head == 1, f"version {head} after apply")
    again = demo.store.plan()
    demo.screen.check("apply is idempotent", again.is_empty, "planning the same definitions again is a no-op")


def materialize(demo: Demo) -> None:
    """Step 2: one version of the training set, and where its rows come from."""
    with announced(), demo.screen.work("compiling kernels, once per machine"):
        seconds = rehearse(demo.ticks, demo.root, TRAINING_SET)
    demo.screen.say(f"rehearsed on a few rows in {seconds:.1f} s: kernels are compiled once per machine")
    with Bar(demo.screen.console) as bar:
        result = demo.store.materialize(TRAINING_SET, progress=bar)
    seconds = result.seconds
    dataset = demo.store.dataset(TRAINING_SET)
    _note_version(demo, dataset)
    demo.first = dataset.to_arrow()
    rate = dataset.num_rows / seconds
    quotes = sum(pq.read_metadata(f).num_rows for f in (demo.root / "ticks" / "quotes").glob("*.parquet"))
    demo.screen.say(
        f"{dataset.num_rows:,} trades on {quotes:,} quotes in {seconds:.1f} s: {rate:,.0f} rows/s"
    )
    demo.screen.facts["rows"] = f"{dataset.num_rows:,} (version {dataset.version})"
    demo.screen.facts["rows/s"] = f"{rate:,.0f}, joined, written and committed ({seconds:.2f} s)"
    _match_ages(demo)


def _note_version(demo: Demo, dataset: "Dataset") -> None:
    demo.fingerprints[dataset.version] = dataset.manifest.fingerprint
    demo.screen.say(f"version {dataset.version}, fingerprint {dataset.manifest.fingerprint}")


def _match_ages(demo: Demo) -> None:
    """How old the newest visible quote is at each trade: the engine as a plain function, without a store."""
    trades, quotes = demo.table("trades", ["symbol", "ts"]), demo.table("quotes", ["symbol", "ts"])
    joined = asof_join(
        trades.select(["symbol", "ts"]),
        quotes,
        on="ts",
        by="symbol",
        tolerance="5s",
        created_on=demo.ticks.created,
        columns=[],
        matched_timestamp="quote_ts",
    )
    matched = joined.filter(pc.is_valid(joined["quote_ts"]))
    ages = matched["ts"].cast(pa.int64()).to_numpy() - matched["quote_ts"].cast(pa.int64()).to_numpy()
    demo.ages = age_shares(ages, joined.num_rows)
    share = ages.size / joined.num_rows
    p50, p99 = (float(np.percentile(ages, q)) / 1e6 for q in (50, 99))
    demo.screen.facts["matched share"] = f"{share:.2%} of trades see a quote at most 5 s old"
    demo.screen.facts["age p50 / p99"] = f"{p50:.3f} ms / {p99:,.1f} ms"
    demo.screen.say(f"{share:.2%} matched, age p50 {p50:.3f} ms, p99 {p99:,.1f} ms")


def verify(demo: Demo) -> None:
    """Step 3: hashes, one row per trade, no future in any value, and the same fingerprint again."""
    dataset = demo.store.dataset(TRAINING_SET)
    dataset.verify()
    demo.screen.check("verify", True, "every file and page has the hash it was written with")
    trades = demo.table("trades", ["symbol", "ts", "price", "size"])
    demo.screen.check(
        "one row per trade",
        dataset.num_rows == trades.num_rows,
        f"{dataset.num_rows:,} rows of {trades.num_rows:,} trades",
    )
    with demo.screen.work(f"brute-force audit of {AUDIT_ROWS:,} rows"):
        audit = _audit(demo, trades)
    found = (
        f"{audit.values:,} values of {audit.rows:,} rows ({audit.present:,} not null) "
        "equal a loop over the raw rows"
    )
    demo.screen.check("leak audit", not audit.mismatches, found)
    for mismatch in audit.mismatches[:5]:
        demo.screen.say(str(mismatch))
    with demo.screen.work("recreating from pinned inputs"):
        again = dataset.recreate()
    same = again.fingerprint == dataset.manifest.fingerprint
    demo.screen.check("recreate", same, f"the same fingerprint {again.fingerprint}")


def _audit(demo: Demo, trades: pa.Table) -> Audit:
    assert demo.first is not None  # noqa: S101 -- step 2 ran
    picked = np.random.default_rng(AUDIT_SEED).choice(
        demo.first.num_rows, min(AUDIT_ROWS, demo.first.num_rows), replace=False
    )
    columns = ["symbol", "ts", *BOOK]
    return audit_rows(
        demo.first.take(pa.array(np.sort(picked))),
        raw_rows(trades, ["price", "size"], demo.ticks.created),
        raw_rows(demo.table("quotes", columns), BOOK, demo.ticks.created),
    )


def train(demo: Demo) -> None:
    """Step 4: one epoch of a small model, split by time."""
    if importlib.util.find_spec("torch") is None:
        demo.screen.skip("training", "torch is not installed: pip install 'featurestore[torch]'")
        return
    assert demo.first is not None  # noqa: S101 -- step 2 ran
    split = int(np.quantile(demo.first["ts"].cast(pa.int64()).to_numpy(), 0.8, method="nearest"))
    with demo.screen.work("one epoch"):
        result = train_in_process(demo.root, TRAINING_SET, until=format_instant(split))
    demo.losses = result.losses
    demo.peaks["training process"] = result.peak_bytes
    tenth = max(1, len(result.losses) // 10)
    first, last = float(np.mean(result.losses[:tenth])), float(np.mean(result.losses[-tenth:]))
    found = (
        f"train {first:.3f} → {last:.3f}, later {result.valid_before:.3f} → {result.valid_after:.3f} nats; "
        f"{result.rows:,} rows in {result.seconds:.1f} s"
    )
    demo.screen.check("loss falls", last < first and result.valid_after < result.valid_before, found)
    demo.screen.facts["loss"] = found


def second_day(demo: Demo) -> None:
    """Step 6: the last day arrives and becomes version 2; version 1 stays what it was."""
    assert demo.first is not None  # noqa: S101 -- step 2 ran
    rows = deliver(demo.ticks, demo.ticks.days[-1], demo.root)
    demo.screen.say(f"{demo.ticks.days[-1]}: {rows:,} rows have arrived")
    with Bar(demo.screen.console) as bar:
        result = demo.store.materialize(TRAINING_SET, progress=bar)
    dataset = demo.store.dataset(TRAINING_SET)
    _note_version(demo, dataset)
    trades = demo.table("trades", ["symbol"]).num_rows
    demo.screen.check(
        "version 2",
        dataset.version == 2 and dataset.num_rows == trades,
        f"{dataset.num_rows:,} rows of {trades:,} trades in {result.seconds:.1f} s",
    )
    old = demo.store.dataset(TRAINING_SET, version=1)
    old.verify()
    same = old.to_arrow().equals(demo.first) and old.manifest.fingerprint == demo.fingerprints[1]
    demo.screen.check(
        "version 1 by version", same, f"{old.num_rows:,} rows, identical to what was read first"
    )
    demo.counts = _counts(dataset.to_arrow())
    demo.screen.facts["versions"] = f"{[entry.version for entry in demo.store.history(TRAINING_SET)]}"
    demo.screen.facts["fingerprints"] = "\n".join(f"{v}: {f}" for v, f in demo.fingerprints.items())


def _counts(table: pa.Table) -> dict[str, dict[str, int]]:
    """Rows per symbol and date."""
    day = pc.strftime(table["ts"], format="%Y-%m-%d")
    grouped = pa.table({"symbol": table["symbol"], "day": day, "n": pa.repeat(1, table.num_rows)})
    totals = grouped.group_by(["symbol", "day"]).aggregate([("n", "sum")]).sort_by("symbol")
    counts: dict[str, dict[str, int]] = {}
    for row in totals.to_pylist():
        counts.setdefault(str(row["symbol"]), {})[row["day"]] = row["n_sum"]
    return counts
