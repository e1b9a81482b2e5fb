//! A copy from one fake registry to another, as each test makes one: it ends in equal digests or in the right error, and never
//! hangs.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use docker_image_pusher::{
    cache::Cache,
    image::{Reference, RepositoryPath},
    output::{Event, Level, OutputManager, Renderer},
    registry::{ClientOptions, Credential, Endpoint, Hosts, RegistryClient},
    transfer::{
        Destination, Failure, ImageJob, Registries, RegistryId, RegistryImage, Run, RunReport,
        TargetReference, TransferOptions,
    },
};
use tempfile::TempDir;

use crate::support::fake::{FakeRegistry, Rule, Sample, Seen, Step};
use crate::support::{Result, install_crypto_provider, process::temporary_folder};

/// By the clock on the wall: the tests' own may be put forward.
const HANG: Duration = Duration::from_mins(1);

/// Where the image is, and where it goes.
pub(crate) const FROM: &str = "team/app";
pub(crate) const TO: &str = "mirror/app";
pub(crate) const TAG: &str = "1";

/// Who copies what from where to where.
pub(crate) struct Way {
    pub(crate) source: FakeRegistry,
    pub(crate) target: FakeRegistry,
    pub(crate) sample: Sample,
    pub(crate) folder: TempDir,
    pub(crate) output: OutputManager,
    pub(crate) messages: Messages,
    pub(crate) options: TransferOptions,
    /// What the target has under the tag before.
    pub(crate) before: Option<Sample>,
    pub(crate) retry_attempts: u32,
    pub(crate) credential: Option<Credential>,
    pub(crate) hosts: Hosts,
}

impl Way {
    /// Between two registries that ask for nothing.
    pub(crate) fn of(sample: Sample) -> Result<Self> {
        Self::between(FakeRegistry::start()?, FakeRegistry::start()?, sample)
    }

    pub(crate) fn between(
        source: FakeRegistry,
        target: FakeRegistry,
        sample: Sample,
    ) -> Result<Self> {
        install_crypto_provider();
        source.put(FROM, TAG, &sample);
        let messages = Messages::default();
        Ok(Self {
            source,
            target,
            sample,
            before: None,
            folder: temporary_folder("cache")?,
            output: OutputManager::new(messages.clone()),
            messages,
            options: TransferOptions::default(),
            retry_attempts: 3,
            credential: None,
            hosts: Hosts::default(),
        })
    }

    /// To a target that has an older image under the tag, so that the source is asked for a digest before anything else.
    pub(crate) fn outdated(mut self) -> Self {
        let older = Sample::no_layers(4711);
        self.target.put(TO, TAG, &older);
        self.before = Some(older);
        self
    }

    /// With a fault of the source.
    pub(crate) fn from(self, rule: impl Into<Rule>) -> Self {
        self.source.add(rule);
        self
    }

    /// With a fault of the target.
    pub(crate) fn to(self, rule: impl Into<Rule>) -> Self {
        self.target.add(rule);
        self
    }

    /// A client with the account of the registry, unless the test says otherwise.
    pub(crate) fn client(&self, registry: &FakeRegistry) -> RegistryClient {
        self.client_at(&registry.url(), registry)
    }

    /// The same at another address.
    pub(crate) fn client_at(&self, url: &str, registry: &FakeRegistry) -> RegistryClient {
        let account = registry.access().credentials;
        let credential = self.credential.clone().unwrap_or_else(|| {
            account.map_or(Credential::Anonymous, |(user, password)| {
                Credential::from_login(user, password.into())
            })
        });
        let options = ClientOptions {
            credential,
            ca_certificates: registry.ca_pem().map(Into::into).into_iter().collect(),
            retry_attempts: self.retry_attempts,
            hosts: self.hosts.clone(),
            ..ClientOptions::default()
        };
        RegistryClient::new(Endpoint::parse(url).unwrap(), options, self.output.clone()).unwrap()
    }

    /// From `team/app:1` to `mirror/app:1`.
    pub(crate) fn job(&self) -> ImageJob {
        job(&self.source, TAG, &[(TO, TAG)])
    }

    /// Runs jobs whose registries are named `source` and `target`.
    pub(crate) async fn run(&self, jobs: &[ImageJob]) -> RunReport {
        let clients = [
            ("source", self.client(&self.source)),
            ("target", self.client(&self.target)),
        ];
        self.run_with(clients, jobs).await
    }

    pub(crate) async fn run_with(
        &self,
        clients: impl IntoIterator<Item = (&str, RegistryClient)>,
        jobs: &[ImageJob],
    ) -> RunReport {
        let registries: Registries = clients
            .into_iter()
            .map(|(name, client)| (RegistryId(name.to_owned()), client))
            .collect();
        let cache = Cache::open(self.folder.path(), self.output.clone()).unwrap();
        let run = Run::new(&cache, registries, self.options, self.output.clone());
        within_limit(run.execute(jobs)).await
    }

    /// The copy succeeds, and every byte is there.
    pub(crate) async fn copies(&self) {
        let report = self.run(&[self.job()]).await;
        self.assert_whole(&report);
    }

    pub(crate) fn assert_whole(&self, report: &RunReport) {
        let failures: Vec<_> = report.failures().map(|(_, _, failure)| failure).collect();
        assert!(failures.is_empty(), "{failures:#?}\n{}", self.story());
        let difference = self.target.difference(TO, TAG, &self.sample);
        assert_eq!(difference, None, "{}", self.story());
    }

    /// The copy fails with this reason, and the tag of the target is what it was.
    pub(crate) async fn fails(&self, reason: &str) -> Failure {
        let report = self.run(&[self.job()]).await;
        let failure = report
            .failures()
            .next()
            .map(|(_, _, failure)| failure.clone());
        let Some(failure) = failure else {
            panic!("it succeeded\n{}", self.story());
        };
        assert_eq!(failure.reason, reason, "{failure:#?}\n{}", self.story());
        if let Some(before) = &self.before {
            assert_eq!(self.target.difference(TO, TAG, before), None);
        } else {
            let there = self.target.manifest(TO, TAG);
            assert!(there.is_none(), "the tag is there all the same");
        }
        failure
    }

    /// What was asked on both sides, for failure messages.
    pub(crate) fn story(&self) -> String {
        let lines = |name: &str, registry: &FakeRegistry| {
            let seen = registry.requests();
            let lines: Vec<String> = seen
                .iter()
                .map(|seen| format!("{name} {}", line(seen)))
                .collect();
            lines.join("\n")
        };
        format!(
            "{}\n{}\n{}",
            lines("source", &self.source),
            lines("target", &self.target),
            self.messages.all().join("\n")
        )
    }
}

/// One request in a line.
pub(crate) fn line(seen: &Seen) -> String {
    let Seen {
        method,
        path,
        query,
        status,
        body_bytes,
        answer_bytes,
        ..
    } = seen;
    let range = seen
        .header("range")
        .or_else(|| seen.header("content-range"))
        .unwrap_or_default();
    format!("{method} {path}?{query} {range} +{body_bytes} -> {status:?} {answer_bytes}")
}

/// A copy between two repositories of one registry.
pub(crate) async fn copy_within(way: &Way) {
    let clients = [
        ("source", way.client(&way.source)),
        ("target", way.client(&way.source)),
    ];
    let report = way
        .run_with(clients, &[job(&way.source, TAG, &[(TO, TAG)])])
        .await;
    assert_eq!(report.failed(), 0, "{report:#?}\n{}", way.story());
    let difference = way.source.difference(TO, TAG, &way.sample);
    assert_eq!(difference, None, "{}", way.story());
}

/// From `team/app` at the registry named `source` to repositories and tags at the one named `target`.
pub(crate) fn job(source: &FakeRegistry, tag: &str, targets: &[(&str, &str)]) -> ImageJob {
    let destinations = targets.iter().map(|(repository, tag)| Destination {
        name: format!("{repository}:{tag}"),
        registry: RegistryId("target".to_owned()),
        repository: repository.parse().unwrap(),
        reference: TargetReference::Known(tag.parse().unwrap()),
    });
    ImageJob {
        cached: format!("{}/{FROM}:{tag}", source.address())
            .parse()
            .unwrap(),
        pinned: None,
        source: Some(RegistryImage {
            registry: RegistryId("source".to_owned()),
            repository: FROM.parse().unwrap(),
            reference: tag.parse().unwrap(),
        }),
        destinations: destinations.collect(),
    }
}

pub(crate) fn from() -> RepositoryPath {
    FROM.parse().unwrap()
}

pub(crate) fn tag() -> Reference {
    TAG.parse().unwrap()
}

/// Nothing may hang.
pub(crate) async fn within_limit<T>(work: impl Future<Output = T>) -> T {
    let started = Instant::now();
    let watch = async {
        while started.elapsed() < HANG {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        done = work => done,
        () = watch => panic!("nothing came of it within {HANG:?}"),
    }
}

/// So often in a row must it be time before the clock moves: each look lets everything else of the runtime go on, so what is
/// on its way arrives before, on a busy machine too.
const LOOKS: usize = 30;

/// Does the work while the clock is put forward each time `is_time` says so, once per request that it is true for.
pub(crate) async fn with_leaps<T>(
    leap: Duration,
    is_time: impl Fn() -> usize,
    work: impl Future<Output = T>,
) -> T {
    let leaps = async {
        let (mut done, mut looks) = (0, 0);
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            looks = if is_time() > done { looks + 1 } else { 0 };
            if looks == LOOKS {
                (done, looks) = (done + 1, 0);
                tokio::time::pause();
                tokio::time::advance(leap).await;
                tokio::time::resume();
            }
        }
    };
    tokio::select! {
        done = work => done,
        () = leaps => unreachable!("it has no end"),
    }
}

/// How many requests of a step have no end yet, and have sent so much.
pub(crate) fn standing(registry: &FakeRegistry, step: Step, answer_bytes: u64) -> usize {
    let seen = registry.of_step(step);
    seen.iter()
        .filter(|seen| seen.answer_bytes == answer_bytes)
        .count()
}

/// What the user was told.
#[derive(Clone, Default)]
pub(crate) struct Messages(Arc<Mutex<Vec<(Level, String)>>>);

impl Renderer for Messages {
    fn handle(&self, event: &Event<'_>) {
        let message = match event {
            Event::Message { level, text } => (*level, (*text).to_owned()),
            Event::Retrying {
                operation, cause, ..
            } => (Level::Detail, format!("again: {operation}: {cause}")),
            _ => return,
        };
        self.0.lock().unwrap().push(message);
    }
}

impl Messages {
    pub(crate) fn all(&self) -> Vec<String> {
        let messages = self.0.lock().unwrap();
        messages.iter().map(|(_, text)| text.clone()).collect()
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        let messages = self.0.lock().unwrap();
        let warnings = messages
            .iter()
            .filter(|(level, _)| *level == Level::Warning);
        warnings.map(|(_, text)| text.clone()).collect()
    }
}

/// An address of this machine that is not loopback: what is refused there is refused for a registry of the real world.
pub(crate) fn own_address() -> std::net::Ipv4Addr {
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    // Sends nothing, only asks which way it would go; the address is one for documentation.
    socket
        .connect(("192.0.2.1", 9))
        .expect("these tests need a network interface beside loopback");
    match socket.local_addr().unwrap().ip() {
        std::net::IpAddr::V4(address) if !address.is_loopback() => address,
        other => panic!("these tests need an address beside loopback, not {other}"),
    }
}
