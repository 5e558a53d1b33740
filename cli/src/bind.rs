//! `portcullis bind` and `unbind`: a disk from the kernel's driver to vfio-pci, and back.
//!
//! A disk that somebody uses is refused, and who that is, is said. What was before each step is written down before the
//! step, so that `unbind` puts it back whatever became of `bind`.

mod journal;
mod kernel;
mod refusals;
mod steps;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use adapter::PciAddress;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::arguments::{BindOptions, UnbindOptions};
use crate::machine::Machine;
use crate::machine::block::disks;
use crate::machine::function::{Function, VFIO, function_of};
use crate::output;

use journal::{Journal, State};
use kernel::{Kernel, Linux};
pub(crate) use refusals::{Refusal, refusals};
use steps::{Hands, missing_modules};

pub(crate) fn bind(options: &BindOptions, as_json: bool) -> Result<ExitCode> {
    let outcome = bind_with(&Machine::new(&options.root), &Linux, options)?;
    if as_json {
        output::print_json(&outcome.as_json())?;
    } else if outcome.refused.iter().any(|refusal| !refusal.goes) {
        eprint!("{}", output::plain(&outcome.as_text()));
    } else {
        output::print(&output::plain(&outcome.as_text()))?;
    }
    Ok(if outcome.stands() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(crate) fn unbind(options: &UnbindOptions, as_json: bool) -> Result<ExitCode> {
    let said = unbind_with(&Machine::new(&options.root), &Linux, options)?;
    if as_json {
        let (address, driver) = (&said.address, &said.driver);
        output::print_json(&json!({ "address": address, "driver": driver, "dry_run": options.dry_run }))?;
    } else {
        output::print(&output::plain(&format!("{}\n", said.text)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A refusal, and whether it was gone over.
struct Judged {
    refusal: Refusal,
    goes: bool,
}

/// What came of a bind.
struct Outcome {
    address: String,
    group: Option<String>,
    disks: Vec<String>,
    former_driver: Option<String>,
    owner: Option<u32>,
    refused: Vec<Judged>,
    /// Shell commands that do the same; what a dry run shows.
    steps: Vec<String>,
    dry_run: bool,
    already: bool,
}

impl Outcome {
    /// Whether the function is bound, or would be.
    fn stands(&self) -> bool {
        self.refused.iter().all(|judged| judged.goes)
    }

    fn as_json(&self) -> Value {
        let refusal = |judged: &Judged| {
            json!({
                "why": judged.refusal.why,
                "mend": judged.refusal.mend,
                "forceable": judged.refusal.forceable,
                "forced": judged.goes,
            })
        };
        json!({
            "address": self.address,
            "bound": self.stands() && !self.dry_run,
            "already": self.already,
            "dry_run": self.dry_run,
            "group": self.group,
            "node": self.group.as_ref().map(|group| format!("/dev/vfio/{group}")),
            "disks": self.disks,
            "former_driver": self.former_driver,
            "user": self.owner,
            "refused": self.refused.iter().map(refusal).collect::<Vec<_>>(),
            "steps": self.steps,
            "device": format!("vfio:{}", self.address),
        })
    }

    fn as_text(&self) -> String {
        let mut text = String::new();
        let disks =
            if self.disks.is_empty() { String::new() } else { format!(" ({})", self.disks.join(", ")) };
        let what = format!("{}{disks}", self.address);
        if !self.stands() {
            text.push_str(&format!("portcullis: {what} is not given to {VFIO}:\n"));
        }
        for Judged { refusal, goes } in &self.refused {
            let mark = match (goes, refusal.forceable) {
                (true, _) => " (--force)",
                (false, true) => " (--force goes over this)",
                (false, false) => "",
            };
            text.push_str(&format!("  {}{mark}\n", refusal.why));
            refusal.mend.iter().for_each(|command| text.push_str(&format!("      {command}\n")));
        }
        if !self.stands() {
            return text;
        }
        if self.dry_run {
            text.push_str(&format!("{what} would be given to {VFIO}:\n"));
            self.steps.iter().for_each(|step| text.push_str(&format!("  {step}\n")));
            return text;
        }
        let group = self.group.as_deref().unwrap_or_default();
        let verb = if self.already { "was bound already" } else { "is bound to vfio-pci" };
        text.push_str(&format!("{what} {verb}; its node is /dev/vfio/{group}\n"));
        text.push_str(&format!(
            "portcullis serve --device vfio:{0}      portcullis unbind {0} undoes it\n",
            self.address
        ));
        text
    }
}

fn bind_with(machine: &Machine, kernel: &dyn Kernel, options: &BindOptions) -> Result<Outcome> {
    let state = open_state(&options.state, options.dry_run)?;
    let hands = Hands { machine, kernel, state: &state };
    let address = find(machine, &state, &options.what)?;
    let mut function = at(machine, address)?;
    let mut outcome = Outcome {
        address: function.address.clone(),
        group: function.group.clone(),
        disks: disks(machine, &function),
        former_driver: function.driver.clone(),
        owner: options.user.map(|user| user.0),
        refused: Vec::new(),
        steps: Vec::new(),
        dry_run: options.dry_run,
        already: function.is_bound(),
    };
    let journal = state.journal(machine, &function.address)?;
    if !function.is_bound()
        && !options.dry_run
        && let Some(journal) = &journal
    {
        // A bind was stopped half way: back to where it began, and from there with all checks.
        hands.undo(journal).context("undoing a bind that was stopped half way")?;
        function = at(machine, address)?;
        (outcome.disks, outcome.former_driver) = (disks(machine, &function), function.driver.clone());
    }
    let mut found = refusals(machine, &function);
    // Held until the kernel's driver has let go, so that nobody can begin to use a disk in between.
    let claims = refusals::claim(machine, kernel, &function, &mut found);
    let judge = |refusal: Refusal| Judged { goes: refusal.forceable && options.force, refusal };
    outcome.refused = found.into_iter().map(judge).collect();
    outcome.steps = plan(machine, &function, outcome.owner);
    if !outcome.stands() || options.dry_run {
        return Ok(outcome);
    }
    let known = journal.filter(|_| function.is_bound());
    let mut journal =
        known.unwrap_or_else(|| Journal::new(machine, &function.address, outcome.disks.clone()));
    let bound = if function.is_bound() { Ok(()) } else { hands.bind(&mut journal, &function) };
    drop(claims);
    let done = bound.and_then(|()| hands.hand_over(&mut journal, &function, outcome.owner));
    match done {
        Ok(()) => Ok(outcome),
        Err(error) if outcome.already => Err(error),
        Err(error) => match hands.undo(&journal) {
            Ok(()) => Err(error.context("nothing was changed in the end")),
            Err(undoing) => Err(error.context(format!(
                "and undoing it failed ({undoing:#}): try `portcullis unbind {}`",
                function.address
            ))),
        },
    }
}

/// What will be done, as shell commands.
fn plan(machine: &Machine, function: &Function, owner: Option<u32>) -> Vec<String> {
    let Function { address, .. } = function;
    let mut steps = Vec::new();
    if !function.is_bound() {
        steps.extend(missing_modules(machine).iter().map(|module| format!("modprobe {module}")));
        steps.push(format!("echo {VFIO} > /{}/driver_override", function.directory()));
        if function.driver.is_some() {
            steps.push(format!("echo {address} > /{}/driver/unbind", function.directory()));
        }
        steps.push(format!("echo {address} > /sys/bus/pci/drivers_probe"));
    }
    if let (Some(uid), Some(node)) = (owner, function.node()) {
        steps.push(format!("chown {uid} /{node}"));
    }
    steps
}

/// What unbind did.
struct Unbound {
    address: String,
    driver: Option<String>,
    text: String,
}

fn unbind_with(machine: &Machine, kernel: &dyn Kernel, options: &UnbindOptions) -> Result<Unbound> {
    let state = open_state(&options.state, options.dry_run)?;
    let hands = Hands { machine, kernel, state: &state };
    let address = find(machine, &state, &options.what)?;
    let function = at(machine, address)?;
    // One that was on vfio-pci before bind saw it was put there by somebody who wrote nothing down.
    let journal = state.journal(machine, &function.address)?;
    let known = journal.as_ref().filter(|journal| journal.driver.is_some());
    let half = journal.is_some() && known.is_none() && !function.is_bound();
    if known.is_none() && !function.is_bound() && !half {
        bail!(
            "{} is not bound to {VFIO} but to {}, and nothing is written down of it in {}: there is nothing to undo",
            function.address,
            function.driver.as_deref().unwrap_or("no driver"),
            options.state.display()
        );
    }
    let (before, how) = match known {
        Some(journal) => (journal.driver.clone().and_then(|former| former.driver), "as it was before"),
        None => (None, "whichever the kernel finds, as nothing is written down"),
    };
    if options.dry_run {
        let driver = before.clone().unwrap_or_else(|| "no driver".to_owned());
        let text = match known {
            Some(_) => format!("{} would get {driver} back, {how}", function.address),
            None => format!("{} would get {how}", function.address),
        };
        return Ok(Unbound { address: function.address, driver: before, text });
    }
    match (&journal, known) {
        (Some(journal), Some(_)) => hands.undo(journal)?,
        (Some(journal), None) if half => hands.undo(journal)?,
        (journal, _) => hands.release(&function, journal.as_ref())?,
    }
    let now = at(machine, address)?;
    let driver = now.driver.clone().unwrap_or_else(|| "no driver".to_owned());
    let text = format!("{} has {driver}, {how}", now.address);
    Ok(Unbound { address: now.address, driver: now.driver, text })
}

fn open_state(directory: &std::path::Path, only_look: bool) -> Result<State> {
    let directory = directory.join("bind");
    if only_look { Ok(State::look(&directory)) } else { State::open(&directory) }
}

fn at(machine: &Machine, address: PciAddress) -> Result<Function> {
    Function::at(machine, address)
        .with_context(|| format!("there is no PCI function {address}: see `lspci -D`"))
}

/// The function that a person means: by address, or by a disk or controller in /dev.
fn find(machine: &Machine, state: &State, what: &str) -> Result<PciAddress> {
    if !what.starts_with('/') {
        let what = what.strip_prefix("vfio:").unwrap_or(what);
        return what.parse().with_context(|| format!("{what:?} is also no path such as /dev/nvme0n1"));
    }
    let name = machine.device_name(what).with_context(|| format!("{what} is not in /dev"))?;
    let class = format!("sys/class/block/{name}");
    if machine.exists(format!("{class}/partition")) {
        bail!("{what} is a partition: a disk is given away as a whole, with all that is on it: name that");
    }
    if let Some(place) = machine.real(&class).or_else(|| machine.real(format!("sys/class/nvme/{name}"))) {
        if let Some(address) = function_of(&place) {
            return Ok(address);
        }
        // A namespace that may have several paths belongs to no controller in particular.
        let on = |function: &Function| disks(machine, function).contains(&name);
        let functions: Vec<Function> = Function::disks(machine).into_iter().filter(on).collect();
        return match functions.as_slice() {
            [function] => Ok(function.address.parse()?),
            [] => bail!("{what} is no disk on the PCI bus, so it cannot be given to {VFIO}"),
            several => {
                let list: Vec<&str> = several.iter().map(|function| function.address.as_str()).collect();
                bail!("{what} is reached over several controllers: name one of {}", list.join(", "))
            }
        };
    }
    match state.function_of(machine, &name)? {
        Some(address) => Ok(address.parse()?),
        None => bail!("there is no {what}: `portcullis doctor` lists the disks"),
    }
}
