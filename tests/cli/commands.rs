//! The two commands that most tests need, as arguments.

/// `pull` of `repository:reference` from a registry.
pub(crate) fn pull<'a>(repository: &'a str, reference: &'a str, registry: &'a str) -> Vec<&'a str> {
    vec![
        "pull",
        "-r",
        repository,
        "-t",
        reference,
        "--registry",
        registry,
    ]
}

/// `push` of a cached image to `repository:reference` at a registry.
pub(crate) fn push<'a>(
    source: &'a str,
    repository: &'a str,
    reference: &'a str,
    registry: &'a str,
) -> Vec<&'a str> {
    vec![
        "push",
        "-s",
        source,
        "-r",
        repository,
        "-t",
        reference,
        "--registry",
        registry,
    ]
}

/// The same command with more options.
pub(crate) fn with<'a>(command: &[&'a str], options: &[&'a str]) -> Vec<&'a str> {
    [command, options].concat()
}
