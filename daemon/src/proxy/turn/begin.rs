//! A good head is only the beginning: what comes of it is held and judged before anything is shown.

pub(super) use crate::proxy::held::is_compaction;

use super::{Last, Step, Turn};
use crate::{
    actor::Lease,
    clock,
    proxy::{
        course::Word,
        held::{Bounds, End, Ready},
        moved::Foreign,
    },
};
use cma_core::{
    bound,
    event::Fault,
    pool::Release,
    sniff::Sniffer,
    verdict::{self, Act, Mark, Outcome, Verdict},
};

impl Turn<'_> {
    /// Holds a good answer's beginning back until it shows something, and judges it when it fails
    /// before.
    pub(super) async fn begun(&mut self, lease: Lease, mut ready: Box<Ready>) -> Step {
        let json = self.wants_stream && ready.is_json();
        if !(ready.can_be_held() || json) || !self.source.repeatable() {
            return Step::Deliver(lease, ready, String::new());
        }
        let bounds = self.bounds();
        let held = if json { Box::pin(ready.hold_json()).await } else { ready.hold(bounds).await };
        match held {
            End::Shows => Step::Deliver(lease, ready, String::new()),
            end => Box::pin(self.failed_inside(lease, ready, end)).await,
        }
    }

    /// Those of holding an answer's beginning back.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds::of(&self.proxy.config.streams, self.compacts, self.silences)
    }

    /// Judges a stream that failed before anything of it was shown.
    async fn failed_inside(&mut self, lease: Lease, mut ready: Box<Ready>, end: End) -> Step {
        let (verdict, hosts) = match &end {
            End::Fault(fault) => (fault.verdict(clock::wall()), fault.is_hosts()),
            _ => (verdict::classify(&Outcome::Cut, clock::wall()), false),
        };
        if let End::Fault(fault) = &end
            && bound::is_foreign(&fault.body)
        {
            let next = self.ride.refused(&self.source).await;
            if matches!(next, Foreign::Theirs) {
                return Step::Deliver(lease, ready, String::new());
            }
            let said = ready.sniffer.take().map(Sniffer::said).unwrap_or_default();
            lease.quota_seen(said.windows);
            let account = lease.account.clone();
            lease.finish(Release { mark: Mark::Fine, served: false, model: None });
            self.course.unsealed(&self.proxy.traces, &account, next);
            return Step::Again;
        }
        if verdict.act == Act::Deliver {
            // The request's own fault: no account would answer differently.
            return Step::Deliver(lease, ready, String::new());
        }
        let said = ready.sniffer.take().map(Sniffer::said).unwrap_or_default();
        lease.quota_seen(said.windows);
        let verdict = Verdict { reason: end.reason(), ..verdict };
        let bars = verdict.mark.bars();
        match end {
            End::Fault(fault) => self.keep_last(&fault, *ready, bars),
            End::Silent => self.silences += 1,
            End::Garbage if ready.is_json() => self.keep_last(&Fault::default(), *ready, bars),
            _ => {},
        }
        self.apply(lease, verdict, hosts).await
    }

    /// Keeps a stream that failed, as an answer that may be the final word.
    fn keep_last(&mut self, fault: &Fault, ready: Ready, bars: bool) {
        let (bytes, stops, parts) = (ready.bytes(), fault.stops_the_cli(), ready.parts);
        let word = Word { stops, bars, attempt: self.course.trace.tried };
        self.last = Some(Box::new(Last { parts, bytes, word }));
    }
}
