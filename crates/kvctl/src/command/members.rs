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
    change: u64,
    groups: Vec<GroupJson>,
}

#[derive(Debug, Serialize)]
struct GroupJson {
    shard: u32,
    done: bool,
    voters: Vec<u64>,
    outgoing: Vec<u64>,
    learners: Vec<u64>,
}

#[derive(Debug, Serialize)]
struct MemberJson {
    node: u64,
    addr: String,
    client_addr: String,
    role: &'static str,
    wanted: &'static str,
    incarnation: Option<String>,
    suspect: bool,
    announced: bool,
}

pub(crate) async fn run(client: &Client, console: &mut Console) -> Ended {
    let reply = client.members().await?;
    let members: Vec<_> = reply.members.into_iter().map(MemberJson::from).collect();
    let groups: Vec<_> = reply.groups.into_iter().map(GroupJson::from).collect();
    if console.format == Format::Json {
        console.json(&MembersJson { members, change: reply.change, groups })?;
        return Ok(Exit::Ok);
    }
    let row = |member: MemberJson| {
        vec![
            member.node.to_string(),
            harmless(&member.addr),
            harmless(&member.client_addr),
            member.role.to_owned(),
            member.wanted.to_owned(),
            super::or_dash(member.incarnation),
            match (member.announced, member.suspect) {
                (true, _) => "announced",
                (false, true) => "suspect",
                (false, false) => "ok",
            }
            .to_owned(),
        ]
    };
    let head = ["NODE", "PEER_ADDR", "CLIENT_ADDR", "ROLE", "WANTED", "INCARNATION", "STATE"];
    console.rows(&head, members.into_iter().map(row).collect())?;
    let behind: Vec<String> =
        groups.iter().filter(|group| !group.done).map(|group| group.shard.to_string()).collect();
    if !behind.is_empty() {
        console.line(&format!("a change is under way in shards {}", behind.join(" ")))?;
    }
    Ok(Exit::Ok)
}

impl From<v1::MemberStatus> for MemberJson {
    fn from(member: v1::MemberStatus) -> Self {
        let wanted = match member.wanted() {
            v1::WantedRole::Removed => "removed",
            v1::WantedRole::Learner => "learner",
            v1::WantedRole::Voter | v1::WantedRole::Unspecified => "voter",
        };
        Self {
            node: member.node,
            addr: member.peer_addr,
            client_addr: member.client_addr,
            role: match (member.announced, member.voter) {
                (true, _) => "none",
                (false, true) => "voter",
                (false, false) => "learner",
            },
            wanted,
            incarnation: (member.incarnation > 0).then(|| format!("{:016x}", member.incarnation)),
            suspect: member.suspect,
            announced: member.announced,
        }
    }
}

impl From<v1::GroupProgress> for GroupJson {
    fn from(group: v1::GroupProgress) -> Self {
        let v1::Membership { voters, outgoing, learners } = group.membership.unwrap_or_default();
        Self { shard: group.shard, done: group.done, voters, outgoing, learners }
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
            wanted: v1::WantedRole::Voter.into(),
            announced: false,
        };
        let membership = Some(v1::Membership { voters: vec![1], ..v1::Membership::default() });
        let group = v1::GroupProgress { shard: 0, done: true, membership };
        let json = MembersJson { members: vec![member.into()], change: 7, groups: vec![group.into()] };
        assert_eq!(
            serde_json::to_string(&json).unwrap(),
            concat!(
                r#"{"members":[{"node":1,"addr":"h:2","client_addr":"h:1","role":"voter","wanted":"voter","#,
                r#""incarnation":"0000000000000001","suspect":false,"announced":false}],"change":7,"#,
                r#""groups":[{"shard":0,"done":true,"voters":[1],"outgoing":[],"learners":[]}]}"#
            )
        );
    }
}
