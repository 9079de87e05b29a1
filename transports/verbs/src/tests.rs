use super::*;

fn verbs() -> Verbs {
    Verbs::default()
}

mod conformance {
    rankine_transport::conformance_suite!(super::verbs(), "verbs://10.9.0.1:0");
}
