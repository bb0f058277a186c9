//! nginx as the yardstick: one worker, unbuffered both ways, connections kept, Authorization
//! replaced; what it would be set up as in the daemon's place.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

pub(crate) struct Nginx {
    pub(crate) port: u16,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Nginx {
    /// Starts it in front of a port; none when it isn't installed.
    ///
    /// `token` is what it writes into `Authorization`: as long as the one the daemon sends, so that both put
    /// the same bytes on the wire.
    pub(crate) fn start(upstream: u16, token: &str) -> Option<Self> {
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
                return Some(Self { port, child, _dir: dir });
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        None
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}
