//! Debian's tinyproxy, as the proxy by which a network is left, and the network behind it.
//!
//! Proxies are never used for loopback, where all registries of the bed are. So the network behind the proxy has names of its
//! own, which nothing else resolves: what reaches a registry by such a name came through the proxy.

use std::io::{BufRead, BufReader, Read, Write, copy};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::ports::free_port;
use super::process::{Guarded, temporary_folder};
use super::{Context, Result};

/// A registry at loopback, seen from behind the proxy.
pub const REGISTRY_NAME: &str = "registry.test";

/// A host to which the proxy lets nobody.
pub const FORBIDDEN_NAME: &str = "forbidden.test";

/// Measured: 20 ms. The rest is for a machine that compiles at the same time.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A running proxy that wants a login.
#[derive(Debug)]
pub struct ForwardProxy {
    _process: Guarded,
    network: Network,
    address: SocketAddr,
}

impl ForwardProxy {
    /// A proxy for who has this login.
    pub fn start(user: &str, password: &str) -> Result<Self> {
        let network = Network::start()?;
        let folder = temporary_folder("tinyproxy")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let config = folder.path().join("tinyproxy.conf");
        let filter = folder.path().join("filter");
        std::fs::write(&filter, FORBIDDEN_NAME).context("could not write the proxy's filter")?;
        let text = config_text(address, &network, &filter, user, password);
        std::fs::write(&config, text).context("could not write the proxy's configuration")?;
        let process = Guarded::spawn("tinyproxy", folder, "tinyproxy", |command| {
            command.arg("-d").arg("-c").arg(config);
        })?;
        process.wait_for("listening", START_LIMIT, || {
            TcpStream::connect(address).ok()
        })?;
        Ok(Self {
            _process: process,
            network,
            address,
        })
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The heads of all requests that the proxy sent on, as they left it.
    pub fn sent_on(&self) -> Vec<String> {
        let heads = self.network.heads.lock();
        heads.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The name of something at loopback as it is called behind the proxy.
pub fn behind(address: &str) -> String {
    let port = address.rsplit(':').next().unwrap_or_default();
    format!("{REGISTRY_NAME}:{port}")
}

fn config_text(
    address: SocketAddr,
    network: &Network,
    filter: &Path,
    user: &str,
    password: &str,
) -> String {
    format!(
        "Listen {ip}\nPort {port}\nTimeout 60\nMaxClients 50\nLogLevel Info\nBasicAuth {user} {password}\n\
         Upstream http {network} \".test\"\nFilter \"{filter}\"\n",
        ip = address.ip(),
        port = address.port(),
        network = network.address,
        filter = filter.display(),
    )
}

/// The network behind the proxy, to tinyproxy one more proxy: it connects to the asked port of loopback, whatever the name.
/// It lives as long as the test's process.
#[derive(Debug)]
struct Network {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Network {
    fn start() -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("could not listen on loopback")?;
        let address = listener
            .local_addr()
            .context("a listener without an address")?;
        let heads = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&heads);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let log = Arc::clone(&log);
                // A connection that breaks is the test's to notice.
                thread::spawn(move || serve(connection, &log).ok());
            }
        });
        Ok(Self { address, heads })
    }
}

/// Reads the head of a request, connects to the port it names and joins both connections.
fn serve(connection: TcpStream, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let port = port_of(&head);
    let is_tunnel = head.starts_with("CONNECT ");
    log.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(head.clone());
    let mut target = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let mut connection = connection;
    if is_tunnel {
        connection.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    } else {
        // A server takes the whole URL in a request as well as its path.
        target.write_all(head.as_bytes())?;
    }
    join(reader, connection, target)
}

/// Passes bytes on in both directions until each has ended.
fn join(
    mut from_client: impl Read + Send + 'static,
    mut to_client: TcpStream,
    target: TcpStream,
) -> std::io::Result<()> {
    let mut to_target = target.try_clone()?;
    thread::spawn(move || {
        copy(&mut from_client, &mut to_target).ok();
        to_target.shutdown(Shutdown::Write).ok();
    });
    let mut from_target = target;
    copy(&mut from_target, &mut to_client)?;
    to_client.shutdown(Shutdown::Write)
}

/// The port in `CONNECT registry.test:5000 HTTP/1.1` or `GET http://registry.test:5000/v2/ HTTP/1.1`; 0, where nothing
/// listens, if there is none.
fn port_of(head: &str) -> u16 {
    let target = head.split(' ').nth(1).unwrap_or_default();
    let target = target.strip_prefix("http://").unwrap_or(target);
    let authority = target.split('/').next().unwrap_or_default();
    let port = authority.rsplit(':').next().unwrap_or_default();
    port.parse().unwrap_or(0)
}
