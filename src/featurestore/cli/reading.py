"""`get-historical`: features as of each row of a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from featurestore.cli.session import AsJson, Root, notes, open_store, print_arrow
from featurestore.errors import DefinitionError, NotFoundError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS: Final = (".parquet", ".arrow", ".feather", ".csv")


def get_historical(
    features: Annotated[
        list[str], typer.Argument(help="Views, view:feature, view@2:feature, or one service.")
    ],
    *,
    spine: Annotated[
        Path, typer.Option("--spine", "-s", help="Parquet, Arrow or CSV with keys and event timestamps.")
    ],
    root: Root = ".",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write Parquet, Arrow or CSV instead of printing.")
    ] = None,
    as_of: Annotated[str | None, typer.Option(help="Answer as the store stood at this instant.")] = None,
    full_names: Annotated[bool, typer.Option("--full-names", help="Name columns view__feature.")] = False,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="Add each view's matched timestamp.")
    ] = False,
    rows: Annotated[int, typer.Option(help="How many rows to print.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Join features onto the rows of a file, each as of its own event timestamp."""
    store = open_store(root)
    job = store.get_historical_features(
        read_table(spine),
        features[0] if len(features) == 1 and ":" not in features[0] else features,
        full_feature_names=full_names,
        as_of=as_of,
        timestamps=timestamps,
    )
    table = job.to_arrow()
    if output is None:
        print_arrow(table, rows=rows, as_json=as_json)
        return
    write_table(table, output)
    notes().print(f"wrote {table.num_rows:,} rows to {output}")


def sql(
    query: Annotated[str, typer.Argument(help="One SELECT; every dataset is a table of its name.")],
    root: Root = ".",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write Parquet, Arrow or CSV instead of printing.")
    ] = None,
    rows: Annotated[int, typer.Option(help="How many rows to print.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Query the newest versions of all datasets with DuckDB SQL; read-only."""
    table = open_store(root).sql(query)
    if output is None:
        print_arrow(table, rows=rows, as_json=as_json)
        return
    write_table(table, output)
    notes().print(f"wrote {table.num_rows:,} rows to {output}")


def read_table(path: Path) -> "pa.Table":
    """Read a Parquet, Arrow or CSV file.

    Raises:
        DefinitionError: another format.
        NotFoundError: no such file.
        StorageError: it is not what its name says.
    """
    _check_format(path)
    if not path.is_file():
        raise NotFoundError(f"no file {path}", hint="name a Parquet, Arrow or CSV file")
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.feather
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            return pyarrow.parquet.ParquetFile(path).read()
        if path.suffix == ".csv":
            return pyarrow.csv.read_csv(path)
        return pyarrow.feather.read_table(path)
    except pa.ArrowInvalid as error:
        raise StorageError(
            f"{path} is not a readable {path.suffix[1:]} file: {error}",
            hint="the ending of its name says what it should hold: .parquet, .csv, .arrow",
        ) from error


def write_table(table: "pa.Table", path: Path) -> None:
    """Write a Parquet, Arrow or CSV file.

    Raises:
        DefinitionError: another format.
    """
    _check_format(path)
    import pyarrow.csv
    import pyarrow.feather
    import pyarrow.parquet

    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.feather.write_feather(table, str(path), compression="uncompressed")


def _check_format(path: Path) -> None:
    if path.suffix not in FORMATS:
        raise DefinitionError(f"{path} has no format that is known here", hint=f"one of {', '.join(FORMATS)}")
