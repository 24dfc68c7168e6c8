//! The command line.
//!
//! Must not know: how a command does its work.

use crate::check::{self, Output};
use crate::control::Source;
use crate::demo;
use crate::process;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

/// A request gateway with strict round robin and a circuit breaker for every upstream.
#[derive(Debug, Parser)]
#[command(version, about, long_about = None, args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    serve: ServeArgs,
    /// Validate the configuration and exit: 0 if it is valid, else 1
    #[arg(short = 't', long = "test")]
    test: bool,
    /// Validate it and print it: defaults filled in, settings merged, `${NAME}` expanded
    #[arg(short = 'T', long = "print-config")]
    print: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Configuration file [default: $CONFIG_PATH, else config.yaml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway (the default)
    Serve(ServeArgs),
    /// Validate a configuration: exit 0 if it is valid, else 1
    Check(CheckArgs),
    /// Print the JSON Schema of the configuration, for editors
    Schema,
    /// Run a gateway with upstreams of its own, to try it out
    Demo(DemoArgs),
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Print the configuration as the gateway sees it: every default filled in, all settings merged, `${NAME}`
    /// expanded, so that what came from environment variables is readable
    #[arg(short = 'T', long = "print-config")]
    print: bool,
    /// Print one JSON document: valid, file, services, upstreams, diagnostics
    #[arg(long, conflicts_with = "print")]
    json: bool,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// How many upstreams
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1000))]
    upstreams: u16,
    /// Port of the first upstream; the others follow
    #[arg(long, value_name = "PORT", default_value_t = 9001, value_parser = clap::value_parser!(u16).range(1..))]
    upstream_port: u16,
    /// Address of the gateway
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from(([127, 0, 0, 1], 8000)))]
    listen: SocketAddr,
    /// Start the upstreams alone
    #[arg(long)]
    upstreams_only: bool,
}

impl ServeArgs {
    fn source(self) -> Source {
        let fallback = || std::env::var_os("CONFIG_PATH").unwrap_or_else(|| OsString::from("config.yaml"));
        Source::File(self.config.unwrap_or_else(|| fallback().into()))
    }
}

/// Does what the command line says.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        None if cli.print => check::check(&cli.serve.source(), Output::Configuration),
        None if cli.test => check::check(&cli.serve.source(), Output::Words),
        None => process::serve(cli.serve.source()),
        Some(Command::Serve(args)) => process::serve(args.source()),
        Some(Command::Check(CheckArgs { serve, print, json })) => {
            let output = match (print, json) {
                (true, _) => Output::Configuration,
                (_, true) => Output::Json,
                _ => Output::Words,
            };
            check::check(&serve.source(), output)
        }
        Some(Command::Schema) => check::schema(),
        Some(Command::Demo(args)) => run_demo(&args),
    }
}

fn run_demo(args: &DemoArgs) -> ExitCode {
    let mut upstreams = Vec::new();
    for number in 0..args.upstreams {
        let Some(port) = args.upstream_port.checked_add(number) else {
            process::eprint_quietly(&format!("fusegate: port {} + {number} is above 65535", args.upstream_port));
            return ExitCode::from(process::EXIT_FAILURE);
        };
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        match demo::start(address, &format!("upstream-{}", number + 1)) {
            Ok(upstream) => upstreams.push(upstream.address),
            Err(error) => {
                process::eprint_quietly(&format!("fusegate: cannot listen on {address}: {error}"));
                return ExitCode::from(process::EXIT_FAILURE);
            }
        }
    }
    if args.upstreams_only {
        process::print_quietly(&format!("upstreams: {}", list(&upstreams)));
        loop {
            std::thread::park();
        }
    }
    let urls = upstreams.iter().map(|address| format!("  - http://{address}\n")).collect::<String>();
    let config = format!(
        "user-service:\n{urls}gateway:\n  listen: {}\n  defaults:\n    circuit_breaker: {{cooldown: 10s}}\n",
        args.listen
    );
    let (gateway, first) = (args.listen, upstreams[0]);
    process::print_quietly(&format!(
        "The gateway listens on http://{gateway}, its upstreams on {}.

Try:
  curl -i http://{gateway}/v1/proxy/user-service            # alternates over the upstreams
  curl -i http://{gateway}/v1/proxy/user-service/bytes/20   # /echo /bytes/N /delay/MS /status/CODE /events
  curl -s http://{gateway}/v1/status                        # breakers, and why
  http://{gateway}/ in a browser                            # the same, live
  curl -X POST http://{first}/fail                 # upstream-1 answers 500 from now on:
                                                            # five requests to it, and its circuit opens
  curl -X POST http://{first}/recover              # it works again; 10 s after the last
                                                            # failure one request probes it
  curl -X POST 'http://{first}/fail?mode=refuse&for=30'   # or hang, or reset

The configuration in force:
{config}",
        list(&upstreams)
    ));
    process::serve(Source::Text("demo.yaml", config))
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
