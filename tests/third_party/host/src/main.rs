//! A host of a few lines: opens the plugin that its argument names and prints what it answers.

use abi_stable::std_types::RStr;
use loraplex_plugin_sdk::abi::foreign::{ForeignResolver, SYMBOL};
use loraplex_plugin_sdk::abi::{Declaration, HostServices};
use loraplex_plugin_sdk::{LoraResolver, ResolverConfig};

extern "C" fn log(_: u8, _: RStr<'_>, _: RStr<'_>, _: RStr<'_>) {}

fn main() {
    let file = std::env::args().nth(1).unwrap();
    // SAFETY: a plugin of this test; it is never unloaded.
    let library = Box::leak(Box::new(unsafe { libloading::Library::new(file) }.unwrap()));
    // SAFETY: the SDK exports a declaration under this name.
    let declaration = unsafe { &**library.get::<*const Declaration>(SYMBOL).unwrap() };
    let (config, services) = (ResolverConfig::default(), HostServices { log });
    let resolver = ForeignResolver::open(declaration, &config, services).unwrap();
    futures::executor::block_on(async {
        println!("{:?}", resolver.resolve_lora("base", "nobody").await.unwrap());
        let found = resolver.resolve_lora("base", "absent").await.unwrap().unwrap();
        println!("{} {:?}", found.path.display(), found.weight);
        println!("{:?}", resolver.describe().await);
    });
}
