//! The `portcullis` command.

mod acl;
mod arguments;
mod bench;
mod bind;
mod connect;
mod copy;
mod demo;
mod device;
mod doctor;
mod files;
mod limit;
mod limits;
mod machine;
mod mount;
mod output;
mod serve;
mod subject;
mod units;
mod volume;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            output::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let place = &arguments.place;
    match &arguments.command {
        Command::Serve(options) => serve::run(options, place)?,
        Command::Device(command) => device::run(command, place)?,
        Command::Volume(command) => volume::run(command, place)?,
        Command::Acl(command) => acl::run(command, place)?,
        Command::Limit(command) => limit::run(command, place)?,
        Command::Ls(options) => return files::list(options, place),
        Command::Cat(options) => return copy::cat(&options.places, place),
        Command::Cp(options) => return copy::run(options, place),
        Command::Mv(options) => return files::rename(options, place),
        Command::Rm(options) => return files::remove(options, place),
        Command::Mkdir(options) => return files::make(options, place),
        Command::Stat(options) => return files::stat(options, place),
        Command::Df(options) => return files::space(options, place),
        Command::Fsck(options) => return files::check(options, place),
        Command::Mount(options) => return mount::run(options, place),
        Command::Bench(options) => bench::run(options, place)?,
        Command::Demo => return demo::run(place.json),
        Command::DemoApplication { volume } => demo::run_application(place, volume)?,
        Command::Doctor(options) => return doctor::run(options, place.json),
        Command::Bind(options) => return bind::bind(options, place.json),
        Command::Unbind(options) => return bind::unbind(options, place.json),
    }
    Ok(ExitCode::SUCCESS)
}
