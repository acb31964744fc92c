"""Parquet files as columns, read without Spark."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from recs.guess.columns import Column, Sample, text_of
from recs.guess.files import GuessError, RawFile

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows that are read, of the first row group and of one in the middle.
_ROWS = 20_000


def read_parquet(file: RawFile) -> Sample:
    """Return the columns of a Parquet file.

    Raises
    ------
    GuessError
        If it cannot be read, or has no rows.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise GuessError(
            f"{file.path}: Parquet needs one more package: pip install pyarrow"
        ) from error

    with file.open() as opened:
        try:
            parquet = pq.ParquetFile(opened)
            if not parquet.metadata.num_rows:
                raise GuessError(f"{file.path} holds no rows: name a file with events")
            fields = list(parquet.schema_arrow)
            nested = [field.name for field in fields if pa.types.is_nested(field.type)]
            kept = [field.name for field in fields if field.name not in nested]
            batches = [
                batch
                for group in sorted({0, parquet.num_row_groups // 2})
                for batch in islice(
                    parquet.iter_batches(_ROWS, row_groups=[group], columns=kept), 1
                )
            ]
            table = pa.Table.from_batches(batches)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise GuessError(f"{file.path} is broken Parquet ({error})") from error
        columns = [_column(name, table.column(name)) for name in table.column_names]
    return Sample(columns, [], nested=nested)


def _column(name: str, values: pa.ChunkedArray) -> Column:
    import pyarrow as pa

    is_time = pa.types.is_timestamp(values.type) or pa.types.is_date(values.type)
    if is_time:
        # Of any unit and zone; what does not fit is no time that ingest would take.
        values = values.cast(pa.timestamp("us"), safe=False)
        texts = [time and time.isoformat() for time in values.to_pylist()]
        return Column(name, texts, is_time=True)
    return Column(name, [text_of(value) for value in values.to_pylist()])
