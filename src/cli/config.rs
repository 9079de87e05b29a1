//! `rankine config`.

use super::columns;
use crate::{
    Result,
    output::print,
    settings::{NAMES, Settings},
};

/// Shows each setting, its value, and who said so.
pub(super) fn show(given: &[(String, String)]) -> Result<()> {
    let mut rows = vec![["setting", "value", "from", "what it is"].map(String::from).to_vec()];
    for origin in Settings::origins(given)? {
        let about = NAMES.iter().find(|(name, ..)| *name == origin.name).map_or("", |(.., about)| about);
        rows.push(vec![origin.name.into(), origin.value, origin.from, about.into()]);
    }
    print(columns(&rows, |_| false))
}
