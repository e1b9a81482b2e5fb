//! Which option of the command line mends an error. The engine's messages name remedies that hold everywhere; how to apply
//! one on the command line is said here.

/// The hint for an error with this reason.
pub(super) fn hint(reason: &str) -> Option<&'static str> {
    match reason {
        "CertificateInvalid" => Some(
            "--ca-file FILE trusts the registry's own CA; --skip-tls verifies no certificate at all",
        ),
        "NoTrustedRoots" => Some("--ca-file FILE trusts the registry's own CA"),
        "NotTls" => Some("write the address with http:// to speak plain http"),
        "TlsRequired" => Some("write the address with https://"),
        "ClientCertificateRefused" => {
            Some("--cert-file FILE and --key-file FILE give our own certificate and its key")
        }
        "ProxyUnreachable" | "ProxyRefused" => Some(
            "the proxy comes from HTTPS_PROXY, HTTP_PROXY or ALL_PROXY; NO_PROXY lists the hosts that need none",
        ),
        "ProxyAuthenticationRequired" => Some(
            "user name and password stand in the variable that names the proxy: http://NAME:PASSWORD@HOST:PORT",
        ),
        "AuthenticationRequired" => {
            Some("give --username and --password-stdin, or log in with docker or podman first")
        }
        "AuthenticationFailed" => {
            Some("check --username and the password, or the login that docker or podman stored")
        }
        _ => None,
    }
}
