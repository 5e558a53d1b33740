//! The health of the device: who asked waits until whoever looks after the device has read it.

use wire::Status;
use wire::control::{HealthInfo, Reply};

use super::{Caller, Control, Refusal};

impl Control {
    pub(super) fn ask_health(&mut self, caller: Caller) {
        let admin = self.session(caller).map(|session| self.policy.is_admin(&session.credentials));
        match admin {
            Ok(true) => self.health_asked.push(caller),
            Ok(false) => {
                let text = "the health of the device is told to administrators only";
                self.answer(caller, Err(Refusal::new(Status::E_AUTH, text)));
            }
            Err(refusal) => self.answer(caller, Err(refusal)),
        }
    }

    /// Whether somebody waits for [`Control::tell_health`].
    pub fn wants_health(&self) -> bool {
        !self.health_asked.is_empty()
    }

    /// What the device said, for all who asked; `None` if it is of a kind that keeps no health log.
    pub fn tell_health(&mut self, health: Option<Result<HealthInfo, String>>) {
        let reply = match health {
            Some(Ok(health)) => Ok(HealthInfo { uri: self.uri.clone(), ..health }),
            Some(Err(text)) => {
                Err((Status::E_DEVICE, format!("{} does not tell its health: {text}", self.uri)))
            }
            None => Err((
                Status::E_OPCODE,
                format!("{} keeps no health log: an NVMe device would, as vfio: or emu: drive", self.uri),
            )),
        };
        for caller in std::mem::take(&mut self.health_asked) {
            let reply = reply.clone().map(|health| Reply::Health(Box::new(health)));
            self.answer(caller, reply.map_err(|(status, text)| Refusal::new(status, text)));
        }
    }
}

#[cfg(test)]
mod tests {
    use wire::Status;
    use wire::socket::Credentials;

    use crate::Embedded;

    #[test]
    fn health_is_told_to_administrators_and_of_devices_that_keep_a_log() {
        let adapter = Embedded::open("emu:64M").unwrap();
        let health = adapter.session().unwrap().device_health().unwrap();
        assert_eq!(
            (health.uri.as_str(), health.temperature, health.available_spare),
            ("emu:67108864", 300, 100)
        );
        assert!(health.data_units_written > 0 && health.errors.is_empty(), "the store was formatted");

        let stranger = Credentials { uid: 4711, gid: 4711, pid: 1, groups: vec![] };
        let refused = adapter.session_as(stranger).unwrap().device_health().unwrap_err();
        assert_eq!(refused.status(), Some(Status::E_AUTH), "{refused}");

        let none = Embedded::open("null:64M").unwrap().session().unwrap().device_health().unwrap_err();
        assert_eq!(none.status(), Some(Status::E_OPCODE));
        assert!(none.to_string().contains("null:67108864 keeps no health log"), "{none}");
    }
}
