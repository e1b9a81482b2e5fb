//! Lists of tags that do not fit one answer.

use std::collections::BTreeSet;

use docker_image_pusher::{
    image::{Reference, RepositoryPath},
    output::OutputManager,
    registry::{ClientOptions, Endpoint, RegistryClient},
};
use futures::{StreamExt, TryStreamExt, stream};

use crate::support::{Context, Result, images::Image, install_crypto_provider, registry::Registry};

/// More than the 1000 tags that one answer may hold (registry rule T2).
const TAGS: usize = 1050;

#[tokio::test]
async fn all_tags_are_found_when_the_list_comes_in_pages() -> Result<()> {
    install_crypto_provider();
    let registry = Registry::open()?;
    Image::builder()
        .build()?
        .push(registry.access(), "team/app:tag-0")?;
    let endpoint = Endpoint::parse(registry.address()).context("address")?;
    let output = OutputManager::silent();
    let client =
        RegistryClient::new(endpoint, ClientOptions::default(), output).context("client")?;
    let repository: RepositoryPath = "team/app".parse().unwrap();
    let tag = |number: usize| format!("tag-{number}").parse::<Reference>().unwrap();
    let manifest = client
        .get_manifest(&repository, &tag(0))
        .await
        .context("manifest")?;
    stream::iter(1..TAGS)
        .map(|number| {
            let (client, repository, manifest) = (&client, &repository, &manifest);
            async move {
                client
                    .upload_manifest_with_token(repository, &tag(number), manifest, None)
                    .await
            }
        })
        .buffer_unordered(16)
        .try_collect::<()>()
        .await
        .context("tags")?;
    let found = client.list_tags(&repository).await.context("list")?;
    let expected: BTreeSet<String> = (0..TAGS).map(|number| format!("tag-{number}")).collect();
    assert_eq!(found.len(), TAGS);
    assert_eq!(
        found
            .iter()
            .map(ToString::to_string)
            .collect::<BTreeSet<_>>(),
        expected
    );
    assert_eq!(registry.count("GET", "/tags/list"), 2);
    Ok(())
}
