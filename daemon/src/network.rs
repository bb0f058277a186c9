//! How other hosts are reached: proxy, roots, HTTP version, names. Settings only, checked at the start.
//!
//! `config.toml` wins over the environment's variables, which are general ones (`HTTPS_PROXY`) and
//! may be meant for other programs. Loopback hosts never go through a proxy; every other upstream is
//! https (`config`), so the proxy of http requests has no meaning here. A setting that can't be
//! followed is an error at the start: nothing goes direct in silence. A proxy's password is shown
//! nowhere.

use cma_proto::message::Setting;
use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use rustls_platform_verifier::Verifier;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Names a proxy for https; the first that is set counts (as with the official CLI's own client).
const PROXY_VARIABLES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
/// Hosts that are reached without it.
const DIRECT_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// A PEM file of more roots; the official CLI's own variable beats the general one (0.169.0).
pub(crate) const ROOTS_VARIABLES: [&str; 2] = ["CODEX_CA_CERTIFICATE", "SSL_CERT_FILE"];
/// A bundle of all public roots is a quarter of this.
const MAX_ROOTS: u64 = 4 * 1024 * 1024;

/// `[network]` of `config.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FileNetwork {
    proxy: Option<SecretString>,
    no_proxy: Option<String>,
    ca_file: Option<PathBuf>,
    http2: Option<String>,
    hosts_file: Option<PathBuf>,
}

/// See the module's documentation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Network {
    proxy: Option<Arc<Proxy>>,
    /// Says which hosts are reached without it.
    direct: Option<Arc<Matcher>>,
    roots: Arc<[CertificateDer<'static>]>,
    /// HTTP/1.1 alone.
    pub(crate) http1_only: bool,
    /// Names of loopback addresses, in the format of `/etc/hosts`.
    pub(crate) hosts_file: Option<PathBuf>,
    /// What was found, for `status`.
    pub(crate) shown: Vec<Setting>,
}

/// How a proxy is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// `CONNECT`.
    Http,
    /// The same over TLS.
    Https,
    /// SOCKS 5; whether the proxy resolves names.
    Socks { names: bool },
}

/// One proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) manner: Manner,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// User and password.
    pub(crate) login: Option<(String, SecretString)>,
    url: SecretString,
    /// Its address without the password.
    pub(crate) shown: String,
}

impl Network {
    /// Reads the section and the variables.
    ///
    /// # Errors
    /// Every fault found.
    pub(crate) fn load(
        file: &FileNetwork,
        var: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Vec<String>> {
        let mut network = Self::default();
        let mut faults = Vec::new();
        let first = |names: &[&'static str]| {
            names.iter().find_map(|name| Some((*name, var(name)?))).unzip()
        };
        let (name, value) = first(&PROXY_VARIABLES);
        let written = file.proxy.as_ref().map(|url| url.expose_secret().to_owned());
        match proxy(written.or(value)) {
            Ok(proxy) => network.proxy = proxy.map(Arc::new),
            Err(why) => {
                faults.push(format!("{}: {why}", whence("proxy", name, file.proxy.is_some())));
            },
        }
        if let Some(proxy) = network.proxy.clone() {
            network.show(name.filter(|_| file.proxy.is_none()).unwrap_or("proxy"), &proxy.shown);
            let (name, value) = first(&DIRECT_VARIABLES);
            if let Some(list) = file.no_proxy.clone().or(value) {
                network.show(name.filter(|_| file.no_proxy.is_none()).unwrap_or("no_proxy"), &list);
                // What matches the list is told by there being no proxy for it.
                let any = Matcher::builder().https("http://proxy.invalid").no(list).build();
                network.direct = Some(Arc::new(any));
            }
        }
        let (name, value) = first(&ROOTS_VARIABLES);
        if let Some(path) = file.ca_file.clone().or(value.map(PathBuf::from)) {
            network.show(
                name.filter(|_| file.ca_file.is_none()).unwrap_or("ca_file"),
                &path.to_string_lossy(),
            );
            match roots(&path) {
                Ok(roots) => network.roots = roots.into(),
                Err(why) => {
                    faults.push(format!(
                        "{}: {why}",
                        whence("ca_file", name, file.ca_file.is_some())
                    ));
                },
            }
        }
        match file.http2.as_deref() {
            None | Some("auto") => {},
            Some("off") => network.http1_only = true,
            Some(other) => {
                faults.push(format!("`config.toml`: http2 `{other}` is neither auto nor off"));
            },
        }
        for (key, path) in [("ca_file", &file.ca_file), ("hosts_file", &file.hosts_file)] {
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                faults.push(format!("`config.toml`: {key} is not an absolute path"));
            }
        }
        network.hosts_file.clone_from(&file.hosts_file);
        if faults.is_empty() { Ok(network) } else { Err(faults) }
    }

    fn show(&mut self, name: &str, value: &str) {
        self.shown.push(Setting { name: name.to_owned(), value: value.to_owned() });
    }

    /// The proxy on the way to a host; none for a loopback one.
    pub(crate) fn proxy_to(&self, host: &str) -> Option<&Arc<Proxy>> {
        let proxy = self.proxy.as_ref()?;
        if crate::config::is_loopback(host) {
            return None;
        }
        let direct = self.direct.as_ref().is_some_and(|direct| {
            let uri = Uri::builder().scheme("https").authority(host).path_and_query("/").build();
            uri.is_ok_and(|uri| direct.intercept(&uri).is_none())
        });
        (!direct).then_some(proxy)
    }

    /// TLS by the system's roots and the person's own. Reads the system's: not for a start.
    ///
    /// # Errors
    /// When the system has no roots.
    pub(crate) fn tls(&self) -> Result<ClientConfig, String> {
        install_tls_provider();
        let provider = rustls::crypto::ring::default_provider().into();
        let verifier =
            Verifier::new_with_extra_roots(self.roots.iter().cloned(), Arc::clone(&provider))
                .map_err(|error| error.to_string())?;
        Ok(ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth())
    }

    /// The same way for the issuer's client.
    ///
    /// # Errors
    /// When it can't be had.
    pub(crate) fn client(
        &self,
        builder: reqwest::ClientBuilder,
        to: &crate::config::Endpoint,
    ) -> Result<reqwest::Client, String> {
        // The client has TLS in it, whether it will be used or not.
        install_tls_provider();
        let failed = |error: reqwest::Error| format!("no client: {error}");
        let names = crate::names::Names::new(self.hosts_file.clone());
        // No variable is read behind our back.
        let mut builder = builder.no_proxy().dns_resolver(Arc::new(names));
        if let Some(proxy) = self.proxy_to(&to.host) {
            // reqwest's own text would show the address.
            let proxy = reqwest::Proxy::all(proxy.url.expose_secret())
                .map_err(|_shown| format!("the proxy `{}` can't be used", proxy.shown))?;
            builder = builder.proxy(proxy);
        }
        if to.tls {
            builder = builder.tls_backend_preconfigured(self.tls()?);
        }
        builder.build().map_err(failed)
    }
}

/// Makes ring the process's TLS provider, once.
fn install_tls_provider() {
    // An error means that it is installed already.
    drop(rustls::crypto::ring::default_provider().install_default());
}

fn whence(key: &str, name: Option<&str>, written: bool) -> String {
    match name {
        Some(name) if !written => format!("`{name}`"),
        _ => format!("`config.toml`: {key}"),
    }
}

/// A setting's proxy, if it names one.
pub(crate) fn proxy(value: Option<String>) -> Result<Option<Proxy>, String> {
    let Some(value) = value.filter(|value| value != "none") else { return Ok(None) };
    let url = if value.contains("://") { value } else { format!("http://{value}") };
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let authority = rest.trim_end_matches('/');
    let (login, place) = match authority.rsplit_once('@') {
        Some((login, place)) => (Some(login), place),
        None => (None, authority),
    };
    let (manner, port) = match scheme.to_ascii_lowercase().as_str() {
        "http" => (Manner::Http, 80),
        "https" => (Manner::Https, 443),
        "socks5" => (Manner::Socks { names: false }, 1080),
        "socks5h" => (Manner::Socks { names: true }, 1080),
        // The rest may hold anything.
        other => {
            return Err(format!(
                "a proxy of the kind `{}` is not supported; use http, https, socks5 or socks5h",
                other.chars().filter(char::is_ascii_alphanumeric).take(16).collect::<String>()
            ));
        },
    };
    let uri: Uri = format!("http://{place}")
        .parse()
        .map_err(|_shown| "it is no proxy's address".to_owned())?;
    let host = uri.host().filter(|host| !host.is_empty()).ok_or("it names no host")?.to_owned();
    let port = uri.port_u16().unwrap_or(port);
    let mask = if login.is_some() { "***@" } else { "" };
    let shown = format!("{scheme}://{mask}{host}:{port}");
    let login = login.map(|login| {
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        (decoded(user), SecretString::from(decoded(password)))
    });
    Ok(Some(Proxy { manner, host, port, login, url: url.into(), shown }))
}

/// Undoes `%40` and the like; what isn't valid stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| *first == b'%');
        let byte = hex
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        if let Some(byte) = byte {
            bytes.push(byte);
            rest = after.get(2..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_binary| text.to_owned())
}

impl Proxy {
    /// `Proxy-Authorization`, marked as sensitive.
    pub(crate) fn authorization(&self) -> Option<HeaderValue> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let (user, password) = self.login.as_ref()?;
        let login = STANDARD.encode(format!("{user}:{}", password.expose_secret()));
        let mut value = HeaderValue::try_from(format!("Basic {login}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

fn roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let failed = |error: io::Error| format!("can't read `{shown}`: {error}");
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_file() || meta.len() > MAX_ROOTS {
        return Err(format!("`{shown}` is no file of certificates"));
    }
    let text = std::fs::read(path).map_err(failed)?;
    let mut known = RootCertStore::empty();
    let mut roots = Vec::new();
    for root in CertificateDer::pem_slice_iter(&text) {
        let root = root.map_err(|error| format!("`{shown}` is no PEM file: {error}"))?;
        known.add(root.clone()).map_err(|error| {
            format!("`{shown}` holds a certificate that can't be used: {error}")
        })?;
        roots.push(root);
    }
    if roots.is_empty() {
        return Err(format!("`{shown}` holds no certificate (PEM, `BEGIN CERTIFICATE`)"));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> Result<Network, Vec<String>> {
        let file: FileNetwork = toml::from_str(text).unwrap();
        Network::load(&file, |name| {
            env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_proxy_comes_from_the_file_else_the_environment_and_loopback_goes_direct() {
        let shown =
            |network: &Network, host: &str| network.proxy_to(host).map(|proxy| proxy.shown.clone());
        let env = [("HTTPS_PROXY", "proxy.corp:3128"), ("ALL_PROXY", "http://other:1")];
        let network = load("", &env).unwrap();
        assert_eq!(shown(&network, "chatgpt.com").unwrap(), "http://proxy.corp:3128");
        for host in ["127.0.0.1", "localhost", "[::1]"] {
            assert_eq!(shown(&network, host), None, "{host}");
        }
        let network = load("proxy = 'https://p.test'", &env).unwrap();
        assert_eq!(shown(&network, "chatgpt.com").unwrap(), "https://p.test:443");
        assert_eq!(shown(&load("proxy = 'none'", &env).unwrap(), "chatgpt.com"), None);
        assert_eq!(shown(&load("", &[("HTTP_PROXY", "p:1")]).unwrap(), "chatgpt.com"), None);
        let lists = [("NO_PROXY", "corp.test,.openai.com"), ("HTTPS_PROXY", "p:1")];
        let network = load("", &lists).unwrap();
        assert_eq!(shown(&network, "auth.openai.com"), None);
        assert_eq!(shown(&network, "corp.test"), None);
        assert!(shown(&network, "chatgpt.com").is_some());
        let all = load("", &[("no_proxy", "*"), ("all_proxy", "socks5h://p:1")]).unwrap();
        assert_eq!(shown(&all, "chatgpt.com"), None);
    }

    #[test]
    fn a_password_is_sent_and_never_shown() {
        let network = load("proxy = 'http://me%40corp:pa%3Ass@p.test:8'", &[]).unwrap();
        let proxy = network.proxy_to("chatgpt.com").unwrap();
        assert_eq!(proxy.shown, "http://***@p.test:8");
        let (user, password) = proxy.login.as_ref().unwrap();
        assert_eq!((user.as_str(), password.expose_secret()), ("me@corp", "pa:ss"));
        assert_eq!(proxy.authorization().unwrap(), "Basic bWVAY29ycDpwYTpzcw==");
        assert!(!format!("{network:?}").contains("pa:ss"), "{network:?}");
        assert!(!format!("{network:?}").contains("pa%3Ass"), "{network:?}");
    }

    #[test]
    fn what_cannot_be_followed_is_an_error() {
        for bad in ["socks4://p:1", "pac+file:///x", "http://", "http://a b"] {
            let faults = load("", &[("HTTPS_PROXY", bad)]).unwrap_err();
            assert!(faults[0].starts_with("`HTTPS_PROXY`"), "{faults:?}");
        }
        assert!(load("http2 = 'on'", &[]).unwrap_err()[0].contains("neither"));
        assert!(load("hosts_file = 'x'", &[]).unwrap_err()[0].contains("absolute"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let env = |path: &Path| [("CODEX_CA_CERTIFICATE", path.to_str().unwrap().to_owned())];
        for text in [
            None,
            Some(""),
            Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            Some("-----BEGIN CERTIFICATE-----\nAAAA"),
        ] {
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            let env = env(&path);
            let env = [(env[0].0, env[0].1.as_str()), ("SSL_CERT_FILE", "/never/read")];
            let faults = load("", &env).unwrap_err();
            assert!(
                faults.len() == 1 && faults[0].starts_with("`CODEX_CA_CERTIFICATE`: "),
                "{faults:?}"
            );
            assert!(faults[0].contains("ca.pem"), "{faults:?}");
        }
    }
}
