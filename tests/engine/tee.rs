//! A blob travels on while it comes: one download feeds every destination, and what goes wrong with one of them, or with the
//! bytes, stays there.

use std::time::Duration;

use docker_image_pusher::{
    cache::Cache,
    output::OutputManager,
    registry::{ClientOptions, Endpoint, RegistryClient},
    transfer::{
        Destination, ImageJob, Outcome, Registries, RegistryId, RegistryImage, Run, RunReport,
        TargetReference, TransferOptions,
    },
};
use hyper::Method;

use crate::support::{
    Context, Result,
    gateway::{Action, Exchange, Gateway, Rule},
    images::Image,
    install_crypto_provider,
    process::temporary_folder,
    registry::Registry,
    skopeo,
};

const LAYER: u64 = 8_000_000;

/// A source behind a gateway with one layer, and destinations behind gateways of their own.
struct Bed {
    image: Image,
    source: Gateway,
    destinations: Vec<Gateway>,
    _registries: Vec<Registry>,
}

impl Bed {
    fn new(destinations: usize) -> Result<Self> {
        install_crypto_provider();
        let registry = Registry::open()?;
        let image = Image::builder().layers(1, LAYER).gzip_level(0).build()?;
        image.push(registry.access(), "team/app:1")?;
        let source = Gateway::before(&registry).start()?;
        let mut registries = vec![registry];
        let mut gateways = Vec::new();
        for _ in 0..destinations {
            let registry = Registry::open()?;
            gateways.push(Gateway::before(&registry).start()?);
            registries.push(registry);
        }
        Ok(Self {
            image,
            source,
            destinations: gateways,
            _registries: registries,
        })
    }

    async fn copy(&self) -> Result<RunReport> {
        let folder = temporary_folder("cache")?;
        let output = OutputManager::silent();
        let cache = Cache::open(folder.path(), output.clone()).context("cache")?;
        let mut registries = Registries::new();
        let addresses = [&self.source].into_iter().chain(&self.destinations);
        for (number, gateway) in addresses.enumerate() {
            let endpoint = Endpoint::parse(&gateway.address()).context("address")?;
            let options = ClientOptions {
                retry_attempts: 1,
                ..ClientOptions::default()
            };
            let client =
                RegistryClient::new(endpoint, options, output.clone()).context("client")?;
            registries.insert(RegistryId(number.to_string()), client);
        }
        let destinations = (1..=self.destinations.len()).map(|number| Destination {
            name: number.to_string(),
            registry: RegistryId(number.to_string()),
            repository: "mirror/app".parse().unwrap(),
            reference: TargetReference::Known("1".parse().unwrap()),
        });
        let job = ImageJob {
            cached: "source.example/team/app:1".parse().unwrap(),
            pinned: None,
            source: Some(RegistryImage {
                registry: RegistryId("0".into()),
                repository: "team/app".parse().unwrap(),
                reference: "1".parse().unwrap(),
            }),
            destinations: destinations.collect(),
        };
        let options = TransferOptions::default();
        Ok(Run::new(&cache, registries, options, output)
            .execute(&[job])
            .await)
    }

    fn is_at(&self, destination: usize) -> bool {
        let access = self.destinations[destination].access(None);
        skopeo::digest(&access, "mirror/app:1").is_ok_and(|digest| digest == self.image.digest)
    }
}

fn is_layer(exchange: &Exchange, method: &Method) -> bool {
    let bytes = exchange.answer_bytes.max(exchange.request_bytes);
    exchange.method == *method && exchange.path.contains("/blobs/") && bytes > 1_000_000
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_sent_on_while_it_comes_and_read_once_for_three_destinations() -> Result<()> {
    let bed = Bed::new(3)?;
    bed.source.add_rule(Rule::on(
        &Method::GET,
        "/blobs/",
        Action::SlowAnswer(8_000_000),
    ));
    let report = bed.copy().await?;
    assert_eq!(report.failed(), 0, "{report:?}");
    let read = bed
        .source
        .answer_bytes(|exchange| is_layer(exchange, &Method::GET));
    assert_eq!(read, bed.image.manifests[0].layers[0].blob.size);
    let exchanges = bed.source.exchanges();
    let download = exchanges
        .iter()
        .find(|exchange| is_layer(exchange, &Method::GET));
    let downloaded = download.unwrap().ended.unwrap();
    for (number, destination) in bed.destinations.iter().enumerate() {
        assert!(bed.is_at(number));
        let exchanges = destination.exchanges();
        let upload = exchanges
            .iter()
            .find(|exchange| is_layer(exchange, &Method::PUT));
        assert!(
            upload.unwrap().started < downloaded,
            "it waited for the whole layer"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_with_a_wrong_byte_is_completed_at_no_destination() -> Result<()> {
    let bed = Bed::new(2)?;
    let wrong = Action::CorruptAnswer(LAYER / 2);
    bed.source
        .add_rule(Rule::on(&Method::GET, "/blobs/", wrong));
    let report = bed.copy().await?;
    let failures: Vec<_> = report.failures().map(|(_, _, failure)| failure).collect();
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert_eq!(failures[0].reason, "DigestMismatch", "{failures:?}");
    assert_eq!(
        failures[0].message.matches("sha256:").count(),
        2,
        "{failures:?}"
    );
    for (number, destination) in bed.destinations.iter().enumerate() {
        assert!(!bed.is_at(number));
        let exchanges = destination.exchanges();
        let completed = exchanges
            .iter()
            .filter(|exchange| is_layer(exchange, &Method::PUT) && exchange.status == Some(201));
        assert_eq!(completed.count(), 0);
        assert_eq!(destination.count(&Method::PUT, "/manifests/"), 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_were_wrong_once_are_fetched_again_and_reach_the_destination() -> Result<()> {
    let bed = Bed::new(1)?;
    let wrong = Action::CorruptAnswer(LAYER / 2);
    // The layer is the largest blob, so it is asked for first.
    bed.source
        .add_rule(Rule::on(&Method::GET, "/blobs/", wrong).times(1));
    let report = bed.copy().await?;
    assert_eq!(report.failed(), 0, "{report:?}");
    assert!(bed.is_at(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_destination_fails_alone_and_a_slow_one_holds_nobody_up() -> Result<()> {
    let bed = Bed::new(3)?;
    let [broken, slow, sound] = &bed.destinations[..] else {
        unreachable!("three were started")
    };
    broken.add_rule(Rule::on(&Method::PUT, "/blobs/", Action::HangUp));
    broken.add_rule(Rule::on(&Method::PATCH, "/blobs/", Action::HangUp));
    let pause = Duration::from_secs(4);
    slow.add_rule(Rule::on(&Method::PUT, "/blobs/", Action::Delay(pause)));
    let report = bed.copy().await?;
    let outcomes: Vec<_> = report.images[0]
        .destinations
        .iter()
        .map(|destination| &destination.outcome)
        .collect();
    assert!(outcomes[0].failure().is_some(), "{report:?}");
    assert_eq!(outcomes[1..], [&Outcome::Copied, &Outcome::Copied]);
    let tagged = |gateway: &Gateway| {
        let exchanges = gateway.exchanges();
        let manifest = exchanges.into_iter().find(|exchange| {
            exchange.method == Method::PUT && exchange.path.ends_with("/manifests/1")
        });
        manifest.and_then(|manifest| manifest.ended)
    };
    let (slow, sound) = (tagged(slow).unwrap(), tagged(sound).unwrap());
    assert!(
        slow - sound > pause / 2,
        "the sound one waited for the slow one"
    );
    Ok(())
}
