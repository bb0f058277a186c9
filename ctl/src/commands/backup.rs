//! `backup`: what can be brought back, and bringing it back.

use super::Context;
use crate::{
    cli::Backup,
    error::{Failure, unexpected},
    render::{Column, Screen, Tone, clean, put, table, time},
};
use cma_proto::{
    message::{Reply, Request},
    survive::{BackupInfo, Restored, Survive, Survived},
};
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Serialize)]
struct Listed {
    backups: Vec<BackupInfo>,
}

#[derive(Debug, Serialize)]
struct Pruned {
    pruned: Vec<String>,
}

/// `backup create`, `list`, `restore`, `prune`.
pub(super) fn backup(
    context: &Context,
    command: Backup,
    screen: &mut Screen,
) -> Result<ExitCode, Failure> {
    let asked = match command {
        Backup::Create { name } => Survive::BackupCreate { name },
        Backup::List => Survive::BackupList,
        Backup::Restore { name, preview } => Survive::BackupRestore { name, preview },
        Backup::Prune { keep } => Survive::BackupPrune { keep },
    };
    match context.connect()?.call(&Request::Survive(asked))? {
        Reply::Survived(Survived::Backup(made)) => screen.answer(&made, |made| {
            format!("Backup {} made: {}.\n", clean(&made.name), accounts(made.accounts))
        })?,
        Reply::Survived(Survived::Backups(backups)) => {
            screen.answer(&Listed { backups }, |listed| rows(&listed.backups, time::now()))?;
        },
        Reply::Survived(Survived::Restored(restored)) => {
            screen.answer(&restored, outcome)?;
            screen.notes(&restored.notes)?;
        },
        Reply::Survived(Survived::Pruned(pruned)) => {
            screen.answer(&Pruned { pruned }, |gone| match gone.pruned.as_slice() {
                [] => "Nothing to remove.\n".to_owned(),
                names => format!("Removed: {}.\n", clean(&names.join(", "))),
            })?;
        },
        other => return Err(unexpected(other).into()),
    }
    Ok(ExitCode::SUCCESS)
}

fn accounts(count: u32) -> String {
    if count == 1 { "1 account".to_owned() } else { format!("{count} accounts") }
}

fn rows(backups: &[BackupInfo], now: u64) -> String {
    if backups.is_empty() {
        return "There is no backup. `cmactl backup create` makes one.\n".to_owned();
    }
    let columns = [
        Column::Left("name"),
        Column::Left("made"),
        Column::Right("accounts"),
        Column::Left("made before"),
    ];
    let row = |backup: &BackupInfo| {
        if let Some(why) = &backup.damaged {
            let name = clean(&backup.name);
            return vec![name, Tone::Bad.paint("unusable"), String::new(), clean(why)];
        }
        vec![
            clean(&backup.name),
            time::relative(backup.made_at, now),
            backup.accounts.to_string(),
            clean(backup.before.as_deref().unwrap_or("(by you)")),
        ]
    };
    table(&columns, backups.iter().map(row).collect())
}

fn outcome(restored: &Restored) -> String {
    let mut text = String::new();
    for account in &restored.accounts {
        let tone = if account.what == "kept" { Tone::Dim } else { Tone::Good };
        let what = tone.paint(format!("{:<6}", clean(&account.what)));
        put!(text, "{what} {}: {}\n", clean(&account.name), clean(&account.why));
    }
    let changed = restored.accounts.iter().filter(|account| account.what != "kept").count();
    if restored.preview {
        let name = clean(&restored.name);
        put!(text, "Nothing was changed. `cmactl backup restore {name}` does it.\n");
    } else if changed == 0 {
        text += "Nothing to restore: the pool has all of it.\n";
    } else if let Some(before) = &restored.before {
        put!(text, "What was before is in the backup {}.\n", clean(before));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use cma_proto::survive::RestoredAccount;

    #[test]
    fn a_preview_says_that_nothing_happened_and_what_would() {
        let account = |what: &str| RestoredAccount {
            id: "a".to_owned(),
            name: "work".to_owned(),
            what: what.to_owned(),
            why: "with its login".to_owned(),
        };
        let mut restored = Restored {
            name: "b".to_owned(),
            preview: true,
            accounts: vec![account("added")],
            before: None,
            notes: Vec::new(),
        };
        let text = outcome(&restored);
        assert!(text.contains("work: with its login"), "{text}");
        assert!(text.contains("`cmactl backup restore b`"), "{text}");
        restored.preview = false;
        restored.accounts = vec![account("kept")];
        assert!(outcome(&restored).contains("Nothing to restore"));
    }

    #[test]
    fn an_unusable_backup_says_why() {
        let backup = BackupInfo {
            name: "b".to_owned(),
            made_at: 0,
            before: None,
            accounts: 0,
            bytes: 7,
            damaged: Some("it is torn".to_owned()),
        };
        assert!(rows(&[backup], 1).contains("it is torn"));
        assert!(rows(&[], 1).contains("cmactl backup create"));
    }
}
