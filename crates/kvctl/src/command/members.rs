//! `member list`, `members`.

use kv_client::{Client, v1};
use serde::Serialize;

use super::Ended;
use crate::args::Format;
use crate::bytes_text::harmless;
use crate::console::Console;
use crate::failure::Exit;

#[derive(Debug, Serialize)]
struct MembersJson {
    members: Vec<MemberJson>,
}

#[derive(Debug, Serialize)]
struct MemberJson {
    node: u64,
    addr: String,
    client_addr: String,
    role: &'static str,
    incarnation: Option<String>,
    suspect: bool,
}

pub(crate) async fn run(client: &Client, console: &mut Console) -> Ended {
    let members: Vec<_> = client.members().await?.members.into_iter().map(MemberJson::from).collect();
    if console.format == Format::Json {
        console.json(&MembersJson { members })?;
        return Ok(Exit::Ok);
    }
    let row = |member: MemberJson| {
        vec![
            member.node.to_string(),
            harmless(&member.addr),
            harmless(&member.client_addr),
            member.role.to_owned(),
            super::or_dash(member.incarnation),
            if member.suspect { "suspect" } else { "ok" }.to_owned(),
        ]
    };
    let head = ["NODE", "PEER_ADDR", "CLIENT_ADDR", "ROLE", "INCARNATION", "STATE"];
    console.rows(&head, members.into_iter().map(row).collect())?;
    Ok(Exit::Ok)
}

impl From<v1::MemberStatus> for MemberJson {
    fn from(member: v1::MemberStatus) -> Self {
        Self {
            node: member.node,
            addr: member.peer_addr,
            client_addr: member.client_addr,
            role: if member.voter { "voter" } else { "learner" },
            incarnation: (member.incarnation > 0).then(|| format!("{:016x}", member.incarnation)),
            suspect: member.suspect,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_have_their_shape() {
        let member = v1::MemberStatus {
            node: 1,
            peer_addr: "h:2".into(),
            client_addr: "h:1".into(),
            voter: true,
            incarnation: 1,
            suspect: false,
        };
        assert_eq!(
            serde_json::to_string(&MembersJson { members: vec![member.into()] }).unwrap(),
            concat!(
                r#"{"members":[{"node":1,"addr":"h:2","client_addr":"h:1","role":"voter","#,
                r#""incarnation":"0000000000000001","suspect":false}]}"#
            )
        );
    }
}
