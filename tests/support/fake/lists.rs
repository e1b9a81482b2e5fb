//! Lists: tags, referrers, repositories.

use serde_json::{Value, json};

use super::call::Call;
use super::fault::{Fault, TagList};
use super::reply::Reply;
use super::rule::fault_value;
use super::storage::digest_of;

impl Call<'_> {
    pub(super) fn tags(&self) -> Reply {
        let mut tags: Vec<String> = {
            let storage = self.state.world.storage();
            let Some(repository) = storage.find(&self.repository) else {
                return Reply::error(404, "NAME_UNKNOWN", "repository name not known to registry");
            };
            repository.tags.keys().cloned().collect()
        };
        let asked: Option<usize> = self.query_value("n").and_then(|n| n.parse().ok());
        if let Some(most) = fault_value!(self.faults, NMax)
            && asked.is_some_and(|asked| asked > most)
        {
            return Reply::error(400, "PAGINATION_NUMBER_INVALID", "invalid n");
        }
        let form = fault_value!(self.faults, Tags);
        if form == Some(TagList::Null) {
            return Reply::json(200, &json!({"name": self.repository, "tags": null}));
        }
        if form == Some(TagList::Shuffled) {
            fastrand::Rng::with_seed(7).shuffle(&mut tags);
        } else if let Some(last) = self.query_value("last") {
            tags.retain(|tag| *tag > last);
        }
        let page = match (&form, asked) {
            (Some(TagList::Shuffled | TagList::ExtraFields), _) => usize::MAX,
            (Some(TagList::AbsoluteLink(page)), asked) => (*page).min(asked.unwrap_or(*page)),
            (_, asked) => asked.unwrap_or(usize::MAX),
        };
        let has_more = tags.len() > page;
        tags.truncate(page);
        let own = format!("/v2/{}/tags/list?n={page}", self.repository);
        let next = format!("{own}&last={}", tags.last().map_or("", String::as_str));
        let link = match &form {
            Some(TagList::Loop) => Some(format!("{}?{}", self.path, self.query)),
            Some(TagList::ForeignLink(url)) => Some(format!("{url}{next}")),
            Some(TagList::AbsoluteLink(_)) => Some(format!("{}{next}", self.own_url())),
            Some(TagList::NoLink) => None,
            _ => Some(next),
        };
        let always = matches!(form, Some(TagList::Loop | TagList::ForeignLink(_)));
        let mut body = json!({"name": self.repository, "tags": tags});
        if form == Some(TagList::ExtraFields) {
            body["child"] = json!([]);
            body["manifest"] = json!({"sha256:00": {"imageSizeBytes": "1", "tag": ["x"]}});
        }
        let reply = Reply::json(200, &body);
        match link.filter(|_| has_more || always) {
            Some(link) => reply.header("link", format!(r#"<{link}>; rel="next""#)),
            None => reply,
        }
    }

    pub(super) fn referrers(&self) -> Reply {
        if let Some(status) = fault_value!(self.faults, Referrers) {
            let reply = Reply::error(status, "UNSUPPORTED", "no referrers");
            return reply.header("location", "/elsewhere");
        }
        if self.faults.has(|fault| matches!(fault, Fault::Legacy)) {
            return Reply::error(404, "UNSUPPORTED", "page not found");
        }
        let wanted = self.query_value("artifactType");
        let storage = self.state.world.storage();
        let manifests = storage
            .find(&self.repository)
            .map(|repository| &repository.manifests);
        let referrers: Vec<Value> = manifests
            .into_iter()
            .flatten()
            .filter_map(|(digest, document)| {
                let value: Value = serde_json::from_slice(&document.bytes).ok()?;
                (digest_of(&value["subject"]) == self.object).then_some(())?;
                let mut artifact = value["artifactType"].clone();
                if artifact.is_null() {
                    artifact = value["config"]["mediaType"].clone();
                }
                Some(json!({
                    "mediaType": document.media_type, "digest": digest, "size": document.bytes.len(),
                    "artifactType": artifact, "annotations": value["annotations"],
                }))
            })
            .filter(|entry| wanted.is_none() || entry["artifactType"].as_str() == wanted.as_deref())
            .collect();
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": referrers,
        });
        let mut reply = Reply::json(200, &index);
        reply.set_header("content-type", "application/vnd.oci.image.index.v1+json");
        if wanted.is_some() {
            reply = reply.header("oci-filters-applied", "artifactType");
        }
        reply
    }

    pub(super) fn catalog(&self) -> Reply {
        if let Some(status) = fault_value!(self.faults, Catalog) {
            return Reply::error(status, "UNSUPPORTED", "no catalog");
        }
        let names = self.state.world.storage().names();
        Reply::json(200, &json!({"repositories": names}))
    }
}
