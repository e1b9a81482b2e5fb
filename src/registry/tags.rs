//! The list of tags, page by page.

use std::collections::HashSet;

use http::{HeaderMap, Method, StatusCode, header};
use serde::Deserialize;
use tracing::debug;
use url::Url;

use crate::image::{RepositoryPath, Tag};

use super::{
    RegistryClient, address,
    answer::Answer,
    body::DOCUMENT_LIMIT,
    error::{Error, Operation, Result},
    judge::Subject,
    scope::Access,
    transport::{Call, Document},
    wire,
};

/// Tags per page; ECR refuses more (registry rule T2; ggcr#681).
const PAGE: usize = 1000;

/// A repository with more tags is a registry that makes them up: the largest known have some ten thousand.
const TAG_LIMIT: usize = 1_000_000;

#[derive(Deserialize)]
struct TagList {
    /// `null` for a repository without tags (T3).
    #[serde(default)]
    tags: Option<Vec<String>>,
}

impl RegistryClient {
    /// All tags of a repository, in the registry's order, each once.
    ///
    /// # Errors
    /// When the repository is not there or a page cannot be read.
    pub async fn list_tags(&self, repository: &RepositoryPath) -> Result<Vec<Tag>> {
        let operation =
            Operation::new(format!("list the tags of {repository} at {}", self.address));
        let mut tags = Vec::new();
        let mut seen = HashSet::new();
        let mut url = self.url(repository, "tags/list");
        url.set_query(Some(&format!("n={PAGE}")));
        loop {
            let scope = self.scope(repository, Access::Pull);
            let call = Call::new(
                operation.clone(),
                Subject::Tags,
                Method::GET,
                url.clone(),
                scope,
            );
            let document = self.send_for_document(&call, DOCUMENT_LIMIT).await?;
            let page = match parse(&operation, document.status, &document.bytes) {
                Ok(page) => page,
                Err(error) => return Err(self.diagnosed(error).await),
            };
            let before = seen.len();
            for text in &page {
                if !seen.insert(text.clone()) {
                    continue;
                }
                match text.parse::<Tag>() {
                    Ok(tag) => tags.push(tag),
                    Err(error) => debug!(%error, "a tag that nobody could ask for is left out"),
                }
            }
            if seen.len() > TAG_LIMIT {
                return Err(Error::UnexpectedAnswer {
                    operation,
                    answer: Answer::of_status(document.status),
                    problem: "it goes on with new tags after a million of them",
                });
            }
            // A page that says nothing new is the end, or a loop.
            let is_new = seen.len() > before;
            match next_page(&operation, &document, &page, &url)? {
                Some(next) if is_new => url = next,
                _ => return Ok(tags),
            }
        }
    }
}

fn parse(operation: &Operation, status: StatusCode, bytes: &[u8]) -> Result<Vec<String>> {
    let list: TagList = serde_json::from_slice(bytes).map_err(|_| Error::UnexpectedAnswer {
        operation: operation.clone(),
        answer: Answer::of_status(status),
        problem: "it is not a list of tags",
    })?;
    Ok(list.tags.unwrap_or_default())
}

/// Where the next page is: where the `Link` says, or after the last tag of a page that is full (T1; ggcr#1643).
fn next_page(
    operation: &Operation,
    document: &Document,
    page: &[String],
    url: &Url,
) -> Result<Option<Url>> {
    if let Some(link) = next_link(&document.headers) {
        let next = document
            .url
            .join(link)
            .map_err(|_| Error::UnexpectedAnswer {
                operation: operation.clone(),
                answer: Answer::of_status(document.status),
                problem: "the link to the next page is not a URL",
            })?;
        return match address::refusal(&document.url, &next) {
            None => Ok(Some(next)),
            Some(reason) => Err(Error::RedirectRefused {
                operation: operation.clone(),
                target: wire::origin_text(&next),
                reason,
            }),
        };
    }
    let Some(last) = page.last().filter(|_| page.len() >= PAGE) else {
        return Ok(None);
    };
    let mut next = url.clone();
    next.query_pairs_mut()
        .clear()
        .append_pair("n", &PAGE.to_string())
        .append_pair("last", last);
    Ok(Some(next))
}

/// The target of `Link: <target>; rel="next"`; other links may stand before it, in the same header or in one of their own.
pub(super) fn next_link(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::LINK)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .find_map(next_link_in)
}

fn next_link_in(value: &str) -> Option<&str> {
    let mut rest = value;
    while let Some((_, link)) = rest.split_once('<') {
        let (target, after) = link.split_once('>')?;
        let parameters = after.split('<').next().unwrap_or_default();
        if parameters.split([';', ',']).any(is_next) {
            return Some(target);
        }
        rest = after;
    }
    None
}

/// Whether a parameter of a link says that it leads to the next page.
fn is_next(parameter: &str) -> bool {
    parameter.split_once('=').is_some_and(|(name, value)| {
        name.trim().eq_ignore_ascii_case("rel")
            && value
                .trim_matches([' ', '"'])
                .split(' ')
                .any(|relation| relation.eq_ignore_ascii_case("next"))
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_link_to_the_next_page_is_found() {
        for (value, expected) in [
            (
                r#"</v2/a/tags/list?last=b&n=2>; rel="next""#,
                Some("/v2/a/tags/list?last=b&n=2"),
            ),
            (
                "<https://r.example/x>;rel=next",
                Some("https://r.example/x"),
            ),
            (
                r#"</a,b>; rel="prev", </c?last=d,e>; title=x; REL="last Next""#,
                Some("/c?last=d,e"),
            ),
            (r#"</x>; rel="prev""#, None),
            (r#"</x>; title="next""#, None),
            ("</x; rel=next", None),
            ("</x>", None),
            ("/x; rel=next", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::LINK, HeaderValue::from_static(value));
            assert_eq!(next_link(&headers), expected, "{value}");
        }
    }
}
