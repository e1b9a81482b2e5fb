//! Lists of tags: rules T1 to T3 of the registry reference.

use std::collections::BTreeSet;

use crate::support::Result;
use crate::support::fake::{FakeRegistry, Fault, Login, Sample, Step, TagList};
use crate::way::{FROM, TAG, Way, from};

/// A source with so many tags beside `1`.
fn with_tags(count: usize) -> Result<Way> {
    let way = Way::of(Sample::no_layers(1))?;
    way.source
        .put_tags(FROM, TAG, (0..count).map(|number| format!("v{number:05}")));
    Ok(way)
}

async fn list(way: &Way) -> BTreeSet<String> {
    let tags = way.client(&way.source).list_tags(&from()).await.unwrap();
    let unique: BTreeSet<String> = tags.iter().map(ToString::to_string).collect();
    assert_eq!(unique.len(), tags.len(), "a tag came twice");
    unique
}

async fn assert_all(way: &Way) {
    let expected: BTreeSet<String> = way.source.tags(FROM).into_iter().collect();
    assert_eq!(list(way).await, expected, "{}", way.story());
}

// T1
#[tokio::test]
async fn pages_are_followed_by_their_links_relative_or_absolute() -> Result<()> {
    let way = with_tags(2_500)?;
    assert_all(&way).await;
    assert_eq!(way.source.count(Step::Tags), 3);
    let way = with_tags(250)?.from(Fault::Tags(TagList::AbsoluteLink(100)));
    assert_all(&way).await;
    assert_eq!(way.source.count(Step::Tags), 3);
    Ok(())
}

// T1
#[tokio::test]
async fn a_full_page_without_link_is_followed_by_what_comes_after_its_last_tag() -> Result<()> {
    let way = with_tags(2_500)?.from(Fault::Tags(TagList::NoLink));
    assert_all(&way).await;
    Ok(())
}

// T1
#[tokio::test]
async fn a_page_that_leads_to_itself_is_the_end() -> Result<()> {
    let way = with_tags(10)?.from(Fault::Tags(TagList::Loop));
    assert_all(&way).await;
    assert!(way.source.count(Step::Tags) <= 3, "{}", way.story());
    Ok(())
}

// T1
#[tokio::test]
async fn a_list_without_pages_and_with_fields_of_its_own_is_read() -> Result<()> {
    let way = with_tags(1_500)?.from(Fault::Tags(TagList::ExtraFields));
    assert_all(&way).await;
    Ok(())
}

// T1, R6
#[tokio::test]
async fn a_page_elsewhere_gets_no_login() -> Result<()> {
    let source = FakeRegistry::builder()
        .login(Login::bearer("me", "secret"))
        .start()?;
    let way = Way::between(source, FakeRegistry::start()?, Sample::no_layers(1))?;
    let other = way.source.beside()?;
    way.source.put_tags(FROM, TAG, ["2".to_owned()]);
    way.source
        .add(Fault::Tags(TagList::ForeignLink(other.url())));
    // Whether the page is read or refused: the login stays here.
    drop(way.client(&way.source).list_tags(&from()).await);
    for seen in other.requests() {
        for secret in way.source.secrets() {
            assert!(!seen.text().contains(&secret), "{}", seen.text());
        }
        assert!(seen.header("authorization").is_none() && seen.header("cookie").is_none());
    }
    Ok(())
}

// T2
#[tokio::test]
async fn no_page_is_asked_for_that_is_larger_than_any_registry_gives() -> Result<()> {
    let way = with_tags(1_200)?.from(Fault::NMax(1_000));
    assert_all(&way).await;
    Ok(())
}

// T3
#[tokio::test]
async fn no_tags_may_be_null() -> Result<()> {
    let way = with_tags(1)?.from(Fault::Tags(TagList::Null));
    assert!(list(&way).await.is_empty());
    Ok(())
}

// T3
#[tokio::test]
async fn the_order_of_tags_means_nothing() -> Result<()> {
    let way = with_tags(1_500)?.from(Fault::Tags(TagList::Shuffled));
    assert_all(&way).await;
    Ok(())
}
