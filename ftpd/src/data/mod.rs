//! Data connections and what goes over them.
