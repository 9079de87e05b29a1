use super::*;

rankine_transport::conformance_suite!(Shm, "shm://*");
