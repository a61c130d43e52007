//! Rows of a Parquet file as JSON values, with the types that the `datasets` library gives them.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Number, Value};

use super::data::PlacedRow;
use super::error::{Place, SuiteError};

/// Both ends of a Parquet file (parquet-format, "File format").
const MAGIC: &[u8; 4] = b"PAR1";

/// Whether the bytes begin as a Parquet file does.
pub(super) fn is_parquet(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// All rows, with the number of the row (from 1) as place.
pub(super) fn read(file: &str, path: &Path) -> Result<Vec<PlacedRow>, SuiteError> {
    let broken = |detail: String| SuiteError::Row { place: Place::new(file, None), detail };
    // The reader asserts on some files that contradict themselves; a damaged download must not end the program.
    let rows = catch_unwind(AssertUnwindSafe(|| rows_of(path)))
        .unwrap_or_else(|_| Err(ParquetError::General("its parts contradict each other".to_owned())));
    let rows = rows.map_err(|e| broken(format!("not a valid Parquet file: {e}")))?;
    let object = |(index, row): (usize, Row)| {
        let place = Place::new(file, Some(index + 1));
        match object(row) {
            Ok(fields) => Ok((place, fields)),
            Err(detail) => Err(SuiteError::Row { place, detail }),
        }
    };
    rows.into_iter().enumerate().map(object).collect()
}

fn rows_of(path: &Path) -> Result<Vec<Row>, ParquetError> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    reader.get_row_iter(None)?.collect()
}

fn object(row: Row) -> Result<Map<String, Value>, String> {
    let column = |(name, field): (String, Field)| match value(field) {
        Ok(value) => Ok((name, value)),
        Err(kind) => Err(format!("column '{name}' holds {kind}, which no prompt can be made of")),
    };
    row.into_columns().into_iter().map(column).collect()
}

/// The JSON value of a field, or the name of its type where there is none.
fn value(field: Field) -> Result<Value, String> {
    let float = |f: f64| Number::from_f64(f).map(Value::Number).ok_or_else(|| format!("the number {f}"));
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(b) => b.into(),
        Field::Byte(i) => i.into(),
        Field::Short(i) => i.into(),
        Field::Int(i) => i.into(),
        Field::Long(i) => i.into(),
        Field::UByte(i) => i.into(),
        Field::UShort(i) => i.into(),
        Field::UInt(i) => i.into(),
        Field::ULong(i) => i.into(),
        Field::Float16(f) => return float(f.to_f64()),
        Field::Float(f) => return float(f64::from(f)),
        Field::Double(f) => return float(f),
        Field::Str(text) => text.into(),
        Field::Group(row) => Value::Object(object(row)?),
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().cloned().map(value).collect::<Result<_, _>>()?)
        }
        Field::Decimal(_) => return Err("decimals".to_owned()),
        Field::Bytes(_) => return Err("bytes".to_owned()),
        Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => return Err("times".to_owned()),
        Field::MapInternal(_) => return Err("maps".to_owned()),
    })
}
