"""What `featurestore init` writes: a store that works, small enough to read in one sitting."""

from pathlib import Path
from string import Template
from typing import Final

from featurestore.core.names import check_name
from featurestore.demo.payments import write_payments
from featurestore.errors import AlreadyExistsError

CONFIG: Final = Template("""\
# The folder of this file is a feature store; definitions are the .py files beside it.
project: $name
buckets: 1            # hash buckets per date of a new table; more where a day holds millions of rows
# memory: 1GB         # budget of a materialization
# online:
#   store: lmdb       # or redis, with url: redis://host:6379/0
#   history: 1h       # how far back a reader may ask; by default to the newest event written
""")

DEFINITIONS: Final = '''\
"""Payments as examples, what was known about the customer as features, a later dispute as label."""

import featurestore as fs

customer = fs.Entity("customer")

payments = fs.Source(
    "payments", path="data/payments.parquet", created_timestamp_column="created", entities=[customer]
)
profiles = fs.Source(
    "profiles", path="data/profiles.parquet", created_timestamp_column="created", entities=[customer]
)
disputes = fs.Source(
    "disputes", path="data/disputes.parquet", created_timestamp_column="created", entities=[customer]
)

profile = fs.FeatureView(
    "profile",
    source=profiles,
    entities=[customer],
    features=["credit_limit", "segment"],
    description="The newest profile that had been entered by then.",
)

spending = fs.FeatureView(
    "spending",
    source=payments,
    entities=[customer],
    aggregations=[
        fs.Aggregation("*", "count", "1d", name="payments_1d"),
        fs.Aggregation("amount", "sum", "7d", name="spent_7d"),
        fs.Aggregation("amount", "max", "30d", name="largest_30d"),
    ],
)

usage = fs.OnDemandFeatureView(
    "usage",
    inputs=["profile:credit_limit"],
    request={"amount": "float64"},
    features={"share_of_limit": "amount / credit_limit"},
)

disputed = fs.Label("disputed_30d", source=disputes, expression="count(*) > 0", horizon="30d")

fraud_model = fs.FeatureService("fraud_model", features=[profile, spending, usage])

payment_risk = fs.TrainingSet(
    "payment_risk", spine=payments, features=fraud_model, labels=[disputed], entities=[customer]
)
'''

TOUR: Final = '''\
"""A tour of this store: run `python notebooks/tour.py`, or go cell by cell in an editor that knows `# %%`."""

# %% The definitions beside feature_store.yaml become version 1 of the catalog.
from pathlib import Path

import featurestore as fs

store = fs.FeatureStore(Path(__file__).resolve().parents[1])
print(store.plan())
store.apply(message="first definitions")
print("catalog version", store.catalog.head)

# %% A training set: every payment with what was known at its instant, and whether a dispute followed.
import polars as pl

store.materialize("payment_risk")
dataset = store.dataset("payment_risk")
print("version", dataset.version, "rows", dataset.num_rows, "fingerprint", dataset.manifest.fingerprint)
print(pl.DataFrame(dataset).head(3))

# %% The version is pinned to its inputs: computed again, it has the same fingerprint.
dataset.verify()
dataset.recreate()

# %% The same features for rows of your own.
import pyarrow as pa

spine = pa.table(
    {
        "customer": ["c0001", "c0002"],
        "event_timestamp": pa.array([1747000000_000000000] * 2, pa.timestamp("ns", "UTC")),
        "amount": [25.0, 900.0],
    }
)
job = store.get_historical_features(spine, "fraud_model")
print(job.to_polars())

# %% The newest values for a model that answers now: in this process, or with `featurestore serve`.
store.materialize("profile")
store.materialize("spending")
now = "2025-05-30T00:00:00Z"
rows = [{"customer": "c0001", "amount": 25.0}, {"customer": "c0002", "amount": 900.0}]
print(store.get_online_features("fraud_model", rows, now=now).to_dict())

# %% Training reads the dataset in shuffled batches; the order depends on version, seed and epoch alone.
loader = dataset.loader(batch_size=1024, label="disputed_30d", dtype="float32", seed=0)
for batch in loader:
    print("x", batch.x.shape, "y", batch.y.shape)
    break
'''


def write_starter(folder: Path) -> tuple[str, ...]:
    """Make the folder and return what it holds.

    Raises:
        DefinitionError: the folder's name cannot be a project's name.
        AlreadyExistsError: there is something in it already.
    """
    name = check_name(folder.name.replace("-", "_"), "project")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AlreadyExistsError(f"{folder} is there already", hint="choose a new name, or empty the folder")
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in (
        ("feature_store.yaml", CONFIG.substitute(name=name)),
        ("definitions.py", DEFINITIONS),
        ("notebooks/tour.py", TOUR),
    ):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")
    write_payments(folder / "data")
    return ("feature_store.yaml", "definitions.py", "notebooks/tour.py", "data/")
