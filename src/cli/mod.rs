//! The command line, one file per command. A command calls the rooms below and prints the result; it decides nothing itself.

mod audit;
mod catalogue;
mod check;
mod context;
mod db;
pub mod demo;
mod explain;
mod failure;
mod grant;
mod key;
mod output;
mod policy;
mod quickstart;
mod serve;
mod server;
mod starter_policies;
mod token;
mod user;

use clap::{Parser, Subcommand};
use context::ConfigFile;
use failure::Failure;
use std::process::ExitCode;

/// Stands between MCP clients and MCP servers: every tool call is authenticated, checked, judged, limited and recorded
/// before it is sent.
#[derive(Debug, Parser)]
#[command(name = "guardian", version, after_help = failure::EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    config: ConfigFile,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Quickstart(quickstart::QuickstartCommand),
    Serve(serve::ServeCommand),
    Check(check::CheckCommand),
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    #[command(subcommand)]
    Grant(grant::GrantCommand),
    #[command(subcommand)]
    Key(key::KeyCommand),
    #[command(subcommand)]
    Token(token::TokenCommand),
    #[command(subcommand)]
    User(user::UserCommand),
    #[command(subcommand)]
    Server(server::ServerCommand),
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    #[command(subcommand)]
    Db(db::DbCommand),
}

/// Runs the command that the arguments name. `EXIT_CODES` lists every exit code it returns.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { failure::USAGE } else { 0 });
        }
    };
    match dispatch(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn dispatch(cli: &Cli) -> Result<(), Failure> {
    let config = &cli.config;
    match &cli.command {
        Command::Quickstart(command) => command.run(),
        Command::Serve(command) => command.run(config),
        Command::Check(command) => context::block_on(command.run(config)),
        Command::Policy(command) => context::block_on(command.run(config)),
        Command::Grant(command) => context::block_on(command.run(config)),
        Command::Key(command) => context::block_on(command.run(config)),
        Command::Token(command) => context::block_on(command.run(config)),
        Command::User(command) => context::block_on(command.run(config)),
        Command::Server(command) => context::block_on(command.run(config)),
        Command::Audit(command) => context::block_on(command.run(config)),
        Command::Db(command) => context::block_on(command.run(config)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// `BLESS=1` rewrites the golden file.
    #[test]
    fn the_help_is_what_was_proofread() {
        fn render(command: &mut clap::Command, path: &str, text: &mut String) {
            let help = command.render_long_help().to_string();
            let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
            text.push_str(&format!("$ guardian{path} --help\n{}\n\n\n", lines.join("\n").trim_end()));
            let names: Vec<String> = command.get_subcommands().map(|inner| inner.get_name().to_owned()).collect();
            for name in names.iter().filter(|name| *name != "help") {
                let inner = command.find_subcommand_mut(name).expect("one of its names");
                render(inner, &format!("{path} {name}"), text);
            }
        }
        let (mut text, file) = (String::new(), "tests/golden/help.txt");
        let mut command = Cli::command().term_width(100);
        command.build();
        render(&mut command, "", &mut text);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(file, &text).unwrap();
        }
        let expected = std::fs::read_to_string(file).unwrap_or_default();
        assert!(expected == text, "{file} differs; now:\n{text}");
    }

    #[test]
    fn every_command_says_what_it_does_and_shows_an_example() {
        fn look(command: &clap::Command) {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "`{name}` does not say what it does");
            if command.get_subcommands().next().is_none() {
                for argument in command.get_arguments() {
                    assert!(argument.get_help().is_some(), "`{name}` does not explain `{argument}`");
                }
                let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(
                    after.contains("guardian ") && after.contains(name),
                    "`{name}` shows no example"
                );
            }
            command
                .get_subcommands()
                .filter(|inner| inner.get_name() != "help")
                .for_each(look);
        }
        Cli::command().get_subcommands().for_each(look);
    }
}
