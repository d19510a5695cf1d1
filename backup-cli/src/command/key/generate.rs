//! `backup key generate`.

use backup_core::Result;
use backup_core::encrypt::signature::SigningKey;
use backup_core::keys::age::AgeIdentity;
use backup_core::repository::rewrap::named;
use backup_core::repository::runs::RunRecord;

use crate::App;
use crate::args::GenerateKeyArgs;
use crate::exit::Exit;

pub(super) fn run(app: &App, args: &GenerateKeyArgs, record: &mut RunRecord) -> Result<Exit> {
    if args.signing {
        return signing(app, args, record);
    }
    let identity = AgeIdentity::generate();
    identity.create_file(&args.file, &*app.clock)?;
    record.recipients = identity.recipients().iter().map(|recipient| named(recipient)).collect();
    app.output.note(format!(
        "made the identity file {}: keep a copy elsewhere, and not in the repository",
        args.file.display()
    ));
    for recipient in identity.recipients() {
        app.output.data(&format!("{recipient}\n"))?;
    }
    Ok(Exit::Done)
}

fn signing(app: &App, args: &GenerateKeyArgs, record: &mut RunRecord) -> Result<Exit> {
    let key = SigningKey::generate();
    key.create_file(&args.file, &*app.clock)?;
    record.signer = Some(key.signer());
    app.output.note(format!(
        "made the signing key {}: name it as signing_key_file here, and its public key in trusted_signers of every host that reads",
        args.file.display()
    ));
    app.output.data(&format!("{}\n", key.signer()))?;
    Ok(Exit::Done)
}
