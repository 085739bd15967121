//! Wires the rooms from one configuration: start, watch, drain, stop. The one place that reads the clock.

mod comparison;
mod first_contact;
mod health;
mod instance_file;
pub mod manifest;
mod policy_files;
pub mod policy_loader;
mod process_actor;
mod stability;
mod stopping;

pub use first_contact::TrailDisagrees;
pub use stopping::JournalNotWritten;

pub use process_actor::process_actor;

use crate::combined::{Combined, CombinedParts};
use crate::config::{CheckedConfig, Config, JournalConfig, StoreKind};
use crate::console::Console;
use crate::domain::{Backoff, EnvironmentName, InstanceId, RequestId, ServerName, Timestamp};
use crate::gate::{Authenticator, Clock, Endpoints, Gate, GateParts, InputKeeper, JitEnrolment, Metadata, RefusalStyle};
use crate::grants::Grants;
use crate::identity::{Identity, Pepper};
use crate::journal::{InputSecrets, Journal, JournalSettings, Shipper, StartFacts};
use crate::limits::Limits;
use crate::sessions::SessionKeys;
use crate::store::{Author, Store, StoreOpen};
use crate::telemetry::Metrics;
use crate::transport::{self, Connections, ServerTls, Shutdown, ShutdownHandle, Watch};
use crate::upstream::Upstreams;
use anyhow::{Context, Result, bail};
use first_contact::{FirstContact, Readiness};
use health::health;
use instance_file::InstanceFile;
use policy_files::{PolicyFiles, UNSTABLE};
use policy_loader::PolicyLoader;
use stability::AllowedChange;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};
use stopping::{HURRIED_STOP, STOP_WITHIN, Signals};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Wall time. Everything else is told it.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// A UUID of version 7. Its random part comes from a generator in this process: the kernel's costs a system call.
/// Unique by the millisecond, a count, and what this process drew once; ordered as they are made.
fn request_id() -> RequestId {
    static DRAWN: LazyLock<u64> = LazyLock::new(|| {
        let mut drawn = [0; 8];
        aws_lc_rs::rand::fill(&mut drawn).expect("the generator was seeded when TLS was set up");
        u64::from_be_bytes(drawn)
    });
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // The first two bytes keep twelve bits, the rest all but two.
    let mut rest = [0; 10];
    rest[..2].copy_from_slice(&(count as u16).to_be_bytes());
    rest[2..].copy_from_slice(&DRAWN.wrapping_add(count >> 12).to_be_bytes());
    let millis = u64::try_from(now().millis()).unwrap_or_default();
    RequestId(uuid::Builder::from_unix_timestamp_millis(millis, &rest).into_uuid())
}

/// Serves until told to stop. What cannot work is refused before anything binds.
pub fn serve(config: CheckedConfig, accept_gap: bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(async {
        let running = Running::start(config, accept_gap).await?;
        running.until_stopped().await
    });
    // A thread that waits for a disk may never come back.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// A serving instance.
pub struct Running {
    pub address: SocketAddr,
    pub metrics_address: SocketAddr,
    pub store: Store,
    gate: Arc<Gate>,
    journal: Journal,
    grants: Arc<Grants>,
    upstreams: Arc<Upstreams>,
    shutdown: ShutdownHandle,
    listeners: JoinSet<()>,
    tasks: JoinSet<()>,
    shipper: Option<std::thread::JoinHandle<()>>,
    stop_shipping: CancellationToken,
    drain: Duration,
}

impl Running {
    /// `accept_gap`: start although the journal and the audit trail do not agree.
    pub async fn start(config: CheckedConfig, accept_gap: bool) -> Result<Self> {
        transport::install_provider();
        crate::journal::survive_file_size_limit().context("cannot install a signal handler")?;
        let config = Arc::new(config);
        make_private_folder(&config.data_dir)?;
        let unservable = transport::check_tls(&config.listen.tls, now());
        if !unservable.is_empty() {
            bail!("{}", unservable.join("; "));
        }
        // Before anything of them is read: what changes from here on is seen.
        let certificates = watch(&config);
        let policies = PolicyFiles::open(&config.policies).await;
        let tls = ServerTls::load(&config.listen.tls)?;
        let store = Store::prepare(&store_open(&config)?)?.authored(Author::Instance(process_actor()));
        let instance = InstanceFile::read(&config.data_dir)?;
        let pepper = Arc::new(Pepper::load_or_create(required_path(&config.keys.pepper_file))?);
        let identity = Arc::new(Identity::new(&config, pepper)?);
        identity.warm();
        let limits = Arc::new(Limits::new(&config.limits, &config.servers)?);
        let metrics = Arc::new(Metrics::new(config.servers.iter().map(|server| server.name.clone())));
        identity.observe_introspections({
            let metrics = metrics.clone();
            move |outcome| metrics.introspected(outcome)
        });
        let facts = start_facts(&config.environment, instance.kept);
        let (journal, recovered) = Journal::open_dir(journal_settings(&config), facts, now)?;
        if recovered.cut > 0 {
            tracing::warn!(
                bytes = recovered.cut,
                "a torn tail of the journal was cut off: nobody was told that it was recorded"
            );
        }
        if recovered.unknown > 0 {
            tracing::warn!(
                calls = recovered.unknown,
                "calls were under way when the last run ended; they are on record as `unknown`"
            );
        }
        journal.observe_appends({
            let metrics = metrics.clone();
            move |took| metrics.audit_appended(took)
        });
        let grants = Arc::new(Grants::unloaded(store.clone(), config.environment.clone(), &config.grants));
        grants.observe_another_history({
            let journal = journal.clone();
            move || journal.rewind(None)
        });
        grants.observe_changes({
            let metrics = metrics.clone();
            move |committed| metrics.revocation_applied(now().since(committed))
        });
        let session_keys = Arc::new(SessionKeys::load_or_create(required_path(&config.sessions.key_file))?);
        // Where a server is stands in the configuration alone: the registry says whether it may be called and for which scopes.
        let upstreams = Arc::new(Upstreams::new(&config.servers)?);
        let policy_loader = Arc::new(PolicyLoader::new(
            config.clone(),
            store.clone(),
            journal.clone(),
            metrics.clone(),
            upstreams.clone(),
        )?);
        let readiness = Arc::<Readiness>::default();
        let mut first_contact = FirstContact {
            config: config.clone(),
            store: store.clone(),
            journal: journal.clone(),
            grants: grants.clone(),
            policy_loader: policy_loader.clone(),
            policies,
            instance,
            readiness: readiness.clone(),
            accept_gap,
            is_compared: false,
        };
        let away = match first_contact.attempt().await {
            Err(error) if first_contact.is_away(&error) => {
                first_contact.wait_because(&error);
                Some(error)
            }
            reached => reached.map(|()| None)?,
        };

        let listener = bind(config.listen.address, "listen.address").await?;
        let admin = bind(config.admin.metrics_address, "admin.metrics_address").await?;
        let (address, metrics_address) = (listener.local_addr()?, admin.local_addr()?);
        let stop_shipping = CancellationToken::new();
        let shipper = Some(ship(&journal, store.clone(), readiness.clone(), stop_shipping.clone())?);
        let connections = Connections::new();
        let clock = Clock {
            now,
            request: request_id,
        };
        let gate = Arc::new(Gate::new(GateParts {
            environment: config.environment.clone(),
            endpoints: Endpoints::new(&config),
            metadata: Metadata::new(&config),
            authenticator: Authenticator::new(
                identity,
                grants.clone(),
                config.environment.clone(),
                just_in_time(&config, &store, &journal),
                InputSecrets::load_or_create(required_path(&config.audit.key_file))?,
            ),
            grants: grants.clone(),
            limits: limits.clone(),
            journal: journal.clone(),
            session_keys: session_keys.clone(),
            upstreams: upstreams.clone(),
            snapshot: policy_loader.snapshot.clone(),
            refusal_styles: config
                .servers
                .iter()
                .map(|server| (server.name.clone(), RefusalStyle::of(server)))
                .collect(),
            session_lifetime: config.sessions.lifetime.0,
            input_keeper: InputKeeper::new(&config.audit),
            metrics: metrics.clone(),
            clock,
        }));
        let combined = Arc::new(Combined::new(CombinedParts {
            gate: gate.clone(),
            upstreams: upstreams.clone(),
            grants: grants.clone(),
            limits: limits.clone(),
            session_keys,
            session_lifetime: config.sessions.lifetime.0,
            keep_alive: config.listen.limits.keep_alive.0,
            clock,
        }));
        let console = Arc::new(Console {
            look: Box::new({
                let (journal, grants, policy_loader) = (journal.clone(), grants.clone(), policy_loader.clone());
                move || health(&readiness, &journal, &grants, &policy_loader)
            }),
            metrics: Box::new({
                let (metrics, journal, grants, connections) =
                    (metrics.clone(), journal.clone(), grants.clone(), connections.clone());
                move || {
                    metrics.audit_unshipped(journal.unshipped(), journal.unshipped_bytes());
                    let findings = journal.findings();
                    metrics.audit_compared(findings.conflicts(), findings.shipped_again(), journal.kept_bytes());
                    if grants.is_admitted() {
                        metrics.grants_age(grants.view().age);
                    }
                    metrics.members_left_out(grants.counts().left_out);
                    for (table, rows) in &*grants.unreadable() {
                        metrics.unreadable_rows(table, *rows);
                    }
                    let counts = connections.counts();
                    metrics.connections(counts.open);
                    metrics.connections_refused("cap", counts.refused);
                    metrics.connections_refused("handshake", counts.failed_handshakes);
                    metrics.connections_refused("timeout", counts.timed_out);
                    metrics.connections_refused("flood", counts.flooded);
                    metrics.encode()
                }
            }),
        });
        let (shutdown, stopped) = Shutdown::new();
        let mut listeners = JoinSet::new();
        listeners.spawn(serve_data(
            listener,
            tls.clone(),
            &config,
            combined,
            stopped.clone(),
            connections,
        ));
        listeners.spawn(serve_console(admin, &config, console, stopped.clone()));
        let mut tasks = JoinSet::new();
        tasks.spawn(every_second(gate.clone(), limits, upstreams.clone()));
        tasks.spawn(flush_refusals(gate.clone()));
        tasks.spawn(follow_changes(first_contact, away));
        if let Some(certificates) = certificates {
            tasks.spawn(follow_certificates(certificates, tls));
        }
        tracing::info!(%address, metrics = %metrics_address, environment = %config.environment, "serving");
        let drain = config.listen.limits.drain_timeout.0;
        Ok(Self {
            address,
            metrics_address,
            store,
            gate,
            journal,
            grants,
            upstreams,
            shutdown,
            listeners,
            tasks,
            shipper,
            stop_shipping,
            drain,
        })
    }

    /// Until SIGTERM or ctrl-c: then no new call, running ones to their end. The second cuts running calls, one after that
    /// ends the process without waiting for the journal's disk.
    pub async fn until_stopped(self) -> Result<()> {
        let mut signals = Signals::new()?;
        signals.next().await;
        self.stop(async move || signals.next().await).await
    }

    pub async fn stop(mut self, mut hurry: impl AsyncFnMut()) -> Result<()> {
        tracing::info!("stopping: no new calls; running ones may finish");
        self.gate.drain();
        self.shutdown.drain();
        let patience = self.drain + Duration::from_secs(5);
        tokio::select! {
            () = join_tasks(&mut self.listeners) => {}
            () = tokio::time::sleep(patience) => self.shutdown.abort(),
            () = hurry() => {
                tracing::warn!("stopping at once: running calls are cut");
                self.shutdown.abort();
            }
        }
        let journal = self.journal.clone();
        let is_written = tokio::select! {
            is_written = self.finish() => is_written,
            () = hurry() => journal.stop_within(HURRIED_STOP).await,
        };
        report_cut_calls(journal.cut_by_stop());
        if !is_written {
            tracing::error!("ended without the journal's last records: its disk did not take them in time");
            return Err(JournalNotWritten.into());
        }
        tracing::info!("stopped; every record is on disk");
        Ok(())
    }

    /// Whether every record is on disk.
    async fn finish(&mut self) -> bool {
        join_tasks(&mut self.listeners).await;
        self.tasks.shutdown().await;
        self.upstreams.stop().await;
        // Bounded, because a disk may not answer.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.gate.flush_refusals()).await;
        // A ticket is closed when its answer is dropped, and all answers are gone by now.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.journal.all_closed()).await;
        let is_written = self.journal.stop_within(STOP_WITHIN).await;
        self.stop_shipping.cancel();
        if let Some(shipper) = self.shipper.take().filter(|_| is_written) {
            let shipped = tokio::task::spawn_blocking(|| shipper.join());
            let _ = tokio::time::timeout(Duration::from_secs(10), shipped).await;
        }
        self.grants.stop().await;
        is_written
    }
}

/// The last word on calls that did not end by themselves.
fn report_cut_calls(calls: u64) {
    if calls > 0 {
        tracing::warn!(
            calls,
            "calls were cut because Guardian stopped: the audit trail has them as `cut`, and says whether they may have run"
        );
    }
}

pub fn store_open(config: &Config) -> Result<StoreOpen> {
    match config.store.kind {
        StoreKind::Sqlite => Ok(StoreOpen::Sqlite {
            file: required_path(&config.store.file).to_owned(),
            create: true,
        }),
        StoreKind::Postgres => {
            let url = config
                .store
                .url
                .as_ref()
                .context("`store.url` is missing: Postgres needs the URL of the proxy's login")?;
            Ok(StoreOpen::Postgres {
                url: url.clone(),
                ca_file: config.store.ca_file.clone(),
                max_connections: config.store.max_connections,
                connect_timeout: config.store.connect_timeout.0,
            })
        }
    }
}

pub fn required_path(path: &Option<PathBuf>) -> &Path {
    path.as_deref()
        .expect("loading a configuration fills in the paths that were left out")
}

/// Ships on a thread of its own, so that reading and inserting records never takes the turn of a call. Not before calls are
/// admitted: the journal and the trail are compared first.
fn ship(
    journal: &Journal,
    store: Store,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
) -> Result<std::thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .thread_name("shipper")
        .enable_all()
        .build()
        .context("cannot start the shipper")?;
    let journal = journal.clone();
    let run = move || {
        crate::journal::lower_priority();
        runtime.block_on(async move {
            tokio::select! {
                biased;
                () = readiness.admitted.cancelled() => {
                    let shipper = Shipper::new(&journal);
                    drop(journal);
                    shipper.run(store, stop).await;
                }
                () = stop.cancelled() => {}
            }
        });
    };
    std::thread::Builder::new()
        .name("shipper".to_owned())
        .spawn(run)
        .context("cannot start the shipper")
}

fn just_in_time(config: &Config, store: &Store, journal: &Journal) -> Option<JitEnrolment> {
    let members = &config.members;
    members.just_in_time.then(|| JitEnrolment {
        store: store.clone(),
        journal: journal.clone(),
        roles: members.just_in_time_roles.clone(),
    })
}

fn journal_settings(config: &Config) -> JournalSettings {
    let JournalConfig {
        max_bytes,
        segment_bytes,
        sync_timeout,
        keep_shipped,
        allow_volatile,
        ..
    } = config.journal;
    JournalSettings {
        dir: required_path(&config.journal.dir).to_owned(),
        max_bytes,
        segment_bytes,
        sync_timeout: sync_timeout.0,
        keep_shipped: keep_shipped.0,
        seal_on_conflict: config.audit.seal_on_conflict,
        allow_volatile,
    }
}

fn start_facts(environment: &EnvironmentName, instance_id: Option<InstanceId>) -> StartFacts {
    let instance = instance_name(environment);
    StartFacts {
        environment: environment.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance,
        instance_id,
    }
}

fn instance_name(environment: &EnvironmentName) -> String {
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let host = host.trim();
    format!("{environment}@{}", if host.is_empty() { "localhost" } else { host })
}

pub fn make_private_folder(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make the folder `{}`", dir.display()))
}

async fn bind(address: SocketAddr, key: &str) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} (`{key}`): choose a free address"))
}

fn serve_data(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    config: &Config,
    combined: Arc<Combined>,
    stopped: Shutdown,
    connections: Arc<Connections>,
) -> impl Future<Output = ()> + use<> {
    let handler = move |request, peer| {
        let combined = combined.clone();
        // In one place from the first step: it is large, and would be moved through every layer of the connection.
        Box::pin(async move { combined.handle(request, peer).await })
    };
    transport::serve_counted(
        listener,
        Some(tls),
        config.listen.limits.clone(),
        handler,
        stopped,
        connections,
    )
}

fn serve_console(
    listener: TcpListener,
    config: &Config,
    console: Arc<Console>,
    stopped: Shutdown,
) -> impl Future<Output = ()> + use<> {
    let handler = move |request, peer| console.clone().handle(request, peer);
    transport::serve(listener, None, config.listen.limits.clone(), handler, stopped)
}

async fn every_second(gate: Arc<Gate>, limits: Arc<Limits>, upstreams: Arc<Upstreams>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for second in 0_u64.. {
        ticks.tick().await;
        gate.recheck_streams().await;
        upstreams.sweep();
        if second % 30 == 0 {
            limits.sweep();
        }
    }
}

/// By itself: records wait for the disk, and a flood makes many of them.
async fn flush_refusals(gate: Arc<Gate>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        gate.flush_refusals().await;
    }
}

/// Waits for a store that is `away`, and then follows what changes in registry, policy files and tools.
async fn follow_changes(mut first_contact: FirstContact, away: Option<anyhow::Error>) {
    if let Some(error) = away {
        first_contact.keep_trying(error).await;
    }
    let FirstContact {
        config,
        policies,
        grants,
        policy_loader,
        ..
    } = first_contact;
    let mut tasks = JoinSet::new();
    tasks.spawn(follow_registry(grants.clone(), policy_loader.clone()));
    tasks.spawn(follow_policies(policies, grants.clone(), policy_loader.clone()));
    for server in &config.servers {
        tasks.spawn(follow_tools(
            server.name.clone(),
            server.catalogue_refresh.0,
            grants.clone(),
            policy_loader.clone(),
        ));
    }
    join_tasks(&mut tasks).await;
}

/// Servers that were added, changed or switched off in the registry, and pins somebody approved.
async fn follow_registry(grants: Arc<Grants>, policy_loader: Arc<PolicyLoader>) {
    let mut changes = grants.changes();
    while changes.changed().await.is_ok() {
        policy_loader.rebuild(&grants.registry()).await;
    }
}

/// Policies take effect when their files change, as soon as these are stable; broken ones never do.
async fn follow_policies(mut files: PolicyFiles, grants: Arc<Grants>, policy_loader: Arc<PolicyLoader>) {
    loop {
        tokio::select! {
            () = files.stirred() => {
                if policy_loader.is_refused().await {
                    files.again();
                }
            }
            () = policy_loader.reconsider.notified() => files.again(),
        }
        loop {
            match files.observe().await {
                AllowedChange::Wait => {}
                AllowedChange::Unstable => policy_loader.refuse(UNSTABLE).await,
                allowed @ (AllowedChange::Add | AllowedChange::Replace) => {
                    if policy_loader.take(files.found(), allowed, &grants.registry()).await {
                        files.done();
                    }
                }
            }
            if !files.pause().await {
                break;
            }
        }
    }
}

/// Certificates take effect when their files change; broken ones never do.
fn watch(config: &Config) -> Option<Watch> {
    let mut files = vec![config.listen.tls.certificate_file.clone(), config.listen.tls.key_file.clone()];
    files.extend(config.listen.tls.client_ca_file.clone());
    let unwatched = |error: &_| tracing::error!(%error, "certificates are not watched: restart to make changes take effect");
    transport::watch(&files).inspect_err(unwatched).ok()
}

async fn follow_certificates(mut files: Watch, tls: Arc<ServerTls>) {
    loop {
        files.changed().await;
        match tls.reload() {
            Ok(true) => tracing::info!("the new certificate is in use"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the new certificate is not used; the old one stays"),
        }
    }
}

/// A server that told nothing is asked again after this, then after twice as long, up to its `catalogue_refresh`.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Looks for changes of a server's tools; one of which no tool is known yet is looked at more often, and ever more rarely.
async fn follow_tools(server: ServerName, every: Duration, grants: Arc<Grants>, policy_loader: Arc<PolicyLoader>) {
    let mut retry = Backoff::new(FIRST_RETRY, every);
    let mut pause = if policy_loader.has_tools(&server) {
        every
    } else {
        retry.failed()
    };
    let mut late = policy_loader.late_fetch(&server);
    loop {
        let seen = if let Some(fetch) = late.take() {
            fetch.await.ok().flatten()
        } else {
            tokio::time::sleep(pause).await;
            policy_loader.refresh_tools(&server).await
        };
        if seen == Some(true) {
            policy_loader.rebuild(&grants.registry()).await;
        }
        if seen.is_some() {
            retry.reset();
        }
        pause = if policy_loader.has_tools(&server) {
            every
        } else {
            retry.failed()
        };
    }
}

async fn join_tasks(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}
