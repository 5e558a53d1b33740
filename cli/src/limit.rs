//! `portcullis limit`.

use anyhow::{Context, Result, bail};
use portcullis::{LimitChange, LimitInfo, Limited, Rate, Session};
use serde_json::{Value, json};

use crate::arguments::{LimitCommand, LimitOf, LimitSet, Where};
use crate::connect::connect;
use crate::output;
use crate::subject::user_name;
use crate::units::show_size;
use crate::volume::answer;

pub(crate) fn run(command: &LimitCommand, place: &Where) -> Result<()> {
    let session = connect(place)?;
    match command {
        LimitCommand::Set(options) => set(&session, place, &options.of, change(options)?),
        LimitCommand::Clear(of) => {
            let none = Some(Rate { rate: 0, burst: 0 });
            let weight = of.volume.is_none().then_some(0);
            set(&session, place, of, LimitChange { requests: none, bytes: none, weight })
        }
        LimitCommand::Show => show(&session, place),
    }
}

fn set(session: &Session, place: &Where, of: &LimitOf, change: LimitChange) -> Result<()> {
    let of = limited(of)?;
    let name = text_of(&of);
    let info = session.set_limits(of, change).with_context(|| format!("cannot set the limits of {name}"))?;
    answer(place, &as_json(&info), || format!("{name}: {}\n", as_text(&info)))
}

fn limited(of: &LimitOf) -> Result<Limited> {
    match (&of.volume, of.user, of.session) {
        (Some(volume), None, None) => Ok(Limited::Volume(volume.clone())),
        (None, Some(user), None) => Ok(Limited::User(user.0)),
        (None, None, Some(session)) => Ok(Limited::Session(session)),
        _ => bail!("say of what: a volume, --user NAME or --session NUMBER"),
    }
}

fn change(options: &LimitSet) -> Result<LimitChange> {
    let rate = |rate: Option<u64>, burst: Option<u64>| {
        rate.map(|rate| Rate { rate, burst: if rate == 0 { 0 } else { burst.unwrap_or(0) } })
    };
    let change = LimitChange {
        requests: rate(options.iops, options.iops_burst),
        bytes: rate(options.bandwidth, options.bandwidth_burst),
        weight: options.weight,
    };
    if change == LimitChange::default() {
        bail!(
            "nothing is to be set: give --iops, --bandwidth or --weight; `portcullis limit clear` takes limits away"
        );
    }
    Ok(change)
}

fn show(session: &Session, place: &Where) -> Result<()> {
    let all = session.list_limits().context("cannot list the limits")?;
    if place.json {
        return output::print_json(&all.iter().map(as_json).collect());
    }
    if all.is_empty() {
        return output::print("Nothing is limited. Set a limit: portcullis limit set VOLUME --iops N\n");
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|info| {
            vec![
                text_of(&info.of),
                info.rates.requests.map_or_else(none, requests_text),
                info.rates.bytes.map_or_else(none, bytes_text),
                info.weight.map_or_else(none, |weight| weight.to_string()),
            ]
        })
        .collect();
    output::print(&output::table(&["OF", "IOPS", "BANDWIDTH", "WEIGHT"], &rows))
}

fn none() -> String {
    "-".to_owned()
}

fn text_of(of: &Limited) -> String {
    match of {
        Limited::Volume(name) => output::name(name),
        Limited::User(uid) => {
            format!("user:{}", user_name(*uid).map_or_else(|| uid.to_string(), |name| output::name(&name)))
        }
        Limited::Session(number) => format!("session:{number}"),
    }
}

/// As a person reads it.
pub(crate) fn requests_text(rate: Rate) -> String {
    match rate.burst {
        0 => rate.rate.to_string(),
        burst => format!("{}, {burst} at once", rate.rate),
    }
}

/// Likewise.
pub(crate) fn bytes_text(rate: Rate) -> String {
    match rate.burst {
        0 => format!("{}/s", show_size(rate.rate)),
        burst => format!("{}/s, {} at once", show_size(rate.rate), show_size(burst)),
    }
}

fn as_text(info: &LimitInfo) -> String {
    let requests = info.rates.requests.map(|rate| format!("{} requests a second", requests_text(rate)));
    let bytes = info.rates.bytes.map(bytes_text);
    let weight = info.weight.map(|weight| format!("weight {weight}"));
    let all: Vec<String> = [requests, bytes, weight].into_iter().flatten().collect();
    if all.is_empty() { "no limits".to_owned() } else { all.join("; ") }
}

/// As a script reads it.
pub(crate) fn rate_json(rate: Option<Rate>) -> Value {
    rate.map_or(Value::Null, |rate| json!({ "rate": rate.rate, "burst": rate.burst }))
}

fn as_json(info: &LimitInfo) -> Value {
    let (kind, of) = match &info.of {
        Limited::Volume(name) => ("volume", json!(name)),
        Limited::User(uid) => ("user", json!(uid)),
        Limited::Session(number) => ("session", json!(number)),
    };
    json!({
        kind: of,
        "iops": rate_json(info.rates.requests),
        "bandwidth": rate_json(info.rates.bytes),
        "weight": info.weight,
    })
}

#[cfg(test)]
mod tests {
    use portcullis::Rates;

    use super::*;

    #[test]
    fn what_holds_is_said_in_words_and_for_scripts() {
        let rates = Rates {
            requests: Some(Rate { rate: 2000, burst: 50 }),
            bytes: Some(Rate { rate: 100 << 20, burst: 0 }),
        };
        let info = LimitInfo { of: Limited::User(0), rates, weight: Some(50) };
        assert_eq!(as_text(&info), "2000, 50 at once requests a second; 100 MiB/s; weight 50");
        let expected = json!({
            "user": 0,
            "iops": { "rate": 2000, "burst": 50 },
            "bandwidth": { "rate": 104_857_600, "burst": 0 },
            "weight": 50,
        });
        assert_eq!(as_json(&info), expected);
        let nothing = LimitInfo { of: Limited::Volume("v".into()), rates: Rates::default(), weight: None };
        assert_eq!(as_text(&nothing), "no limits");
    }
}
