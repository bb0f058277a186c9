//! What the daemon is measured by: nginx, set up as it would be in the daemon's place (one worker,
//! unbuffered both ways, connections kept, `Authorization` replaced).
//!
//! `CMA_BENCH_YARDSTICK=bare` takes a bare hop of tokio and hyper instead ([`crate::bare`]): what is over
//! that one's figure is the daemon's own. It speaks no WebSocket. `CMA_BENCH_YARDSTICK=none` measures the
//! daemon alone.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

pub(crate) struct Yardstick {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    child: Child,
    _dir: Option<tempfile::TempDir>,
}

impl Yardstick {
    /// Starts it in front of a port; none when nginx isn't installed.
    ///
    /// `token` is what it writes into `Authorization`: as long as the one the daemon sends, so that both put
    /// the same bytes on the wire.
    pub(crate) fn start(upstream: u16, token: &str) -> Option<Self> {
        match std::env::var("CMA_BENCH_YARDSTICK").as_deref() {
            Ok("bare") => Some(Self::bare(upstream, token.len())),
            Ok("none") => None,
            _ => Self::nginx(upstream, token),
        }
    }

    fn bare(upstream: u16, token: usize) -> Self {
        let own = std::env::current_exe().expect("own path");
        let mut child = Command::new(own)
            .args(["--bare", &upstream.to_string(), &token.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the bare hop starts");
        let port = crate::upstream::announced_port(child.stdout.take().expect("its pipe"));
        Self { name: "bare", port, child, _dir: None }
    }

    fn nginx(upstream: u16, token: &str) -> Option<Self> {
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/bin/nginx"]
            .into_iter()
            .find(|path| Path::new(path).exists())?;
        let dir = tempfile::tempdir().ok()?;
        let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        let folder = dir.path().display();
        let config = format!(
            "daemon off; worker_processes 1; master_process off; pid {folder}/pid; error_log stderr crit;
             events {{ worker_connections 8192; }}
             http {{
               access_log off; tcp_nodelay on; keepalive_requests 1000000; keepalive_timeout 300s;
               client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
               uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
               map $http_upgrade $kept {{ default upgrade; '' ''; }}
               upstream up {{ server 127.0.0.1:{upstream}; keepalive 1100; keepalive_requests 1000000; }}
               server {{
                 listen 127.0.0.1:{port} backlog=1024; client_max_body_size 0;
                 location / {{
                   proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection $kept;
                   proxy_set_header Upgrade $http_upgrade;
                   proxy_set_header Authorization \"Bearer {token}\"; proxy_buffering off;
                   proxy_set_header ChatGPT-Account-ID \"acct-a\";
                   proxy_request_buffering off; proxy_read_timeout 300s;
                 }}
               }}
             }}"
        );
        let file = dir.path().join("nginx.conf");
        std::fs::write(&file, config).ok()?;
        let child = Command::new(program)
            .arg("-c")
            .arg(&file)
            .arg("-p")
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(Self { name: "nginx", port, child, _dir: Some(dir) });
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        None
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Yardstick {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}
