//! The attribute macro `#[rankine::main]`.

use proc_macro::TokenStream;
use quote::quote;
use syn::{ItemFn, parse_macro_input};

/// Turns `async fn main(client: Client) -> T` into the program's entry.
///
/// The process first finds out which role it plays (the program itself, `scheduler`, `worker` or
/// `client`; see `rankine::run`) and runs the body only as the program or a client of a running cluster.
#[proc_macro_attribute]
pub fn main(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    let complaint = if !arguments.is_empty() {
        Some("#[rankine::main] takes no arguments: the cluster is chosen on the command line")
    } else if function.sig.asyncness.is_none() {
        Some("#[rankine::main] needs an async function: async fn main(client: Client)")
    } else if function.sig.inputs.len() != 1 {
        Some("#[rankine::main] needs a function of one argument: async fn main(client: Client)")
    } else {
        None
    };
    if let Some(text) = complaint {
        return syn::Error::new_spanned(&function.sig, text).to_compile_error().into();
    }
    let (attributes, visibility) = (&function.attrs, &function.vis);
    let (name, body) = (&function.sig.ident, &function.block);
    let (inputs, output) = (&function.sig.inputs, &function.sig.output);
    quote! {
        #(#attributes)*
        #visibility fn #name() -> ::std::process::ExitCode {
            async fn body(#inputs) #output #body
            ::rankine::run(body)
        }
    }
    .into()
}
