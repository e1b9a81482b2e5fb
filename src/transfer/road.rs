//! One direction of a run: from its source, or to one registry. A slow destination fills its own road and no other.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use super::{TransferOptions, bandwidth::Bandwidth, lanes::Lanes};

/// The slots and the bandwidth of one direction.
#[derive(Debug)]
pub(super) struct Road {
    pub(super) lanes: Lanes,
    pub(super) bandwidth: Bandwidth,
}

impl Road {
    fn new(options: &TransferOptions) -> Self {
        Self {
            lanes: Lanes::new(options.max_concurrent),
            bandwidth: Bandwidth::new(options.bandwidth_limit),
        }
    }
}

/// All directions of a run.
#[derive(Debug)]
pub(super) struct Roads {
    options: TransferOptions,
    pub(super) source: Road,
    /// By the registry's address: several repositories there are one way.
    destinations: Mutex<HashMap<String, Arc<Road>>>,
}

impl Roads {
    pub(super) fn new(options: TransferOptions) -> Self {
        Self {
            options,
            source: Road::new(&options),
            destinations: Mutex::default(),
        }
    }

    /// The road to the registry at this address.
    pub(super) fn to(&self, address: &str) -> Arc<Road> {
        let mut destinations = self.destinations.lock();
        if let Some(road) = destinations.get(address) {
            return Arc::clone(road);
        }
        let road = Arc::new(Road::new(&self.options));
        destinations.insert(address.to_owned(), Arc::clone(&road));
        road
    }
}
