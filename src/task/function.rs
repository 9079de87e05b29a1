//! What can be a task: plain functions and closures that capture nothing.

use std::{any::type_name, marker::PhantomData};

use super::{ArgDecoder, ArgEncoder, Data, IntoArg, ReadArg, TaskEntry, TaskError, Value};

/// A function of parameters `P` that can be a task. `M` tells a plain result from a fallible one.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a task with parameters `{P}`",
    note = "a task is a function or a capture-free closure whose parameters are owned and whose result \
            is a value that serde can write and read, or a Result of one"
)]
pub trait TaskFn<P, M>: CapturesNothing {
    /// The type of its result when it succeeds.
    type Output: Data;

    /// Calls it.
    ///
    /// # Errors
    /// If it returned one.
    fn invoke(self, parameters: P) -> Result<Self::Output, TaskError>;
}

/// A function item or a closure without captures: all its values are the same. (Closures that capture
/// only what can be copied, numbers say, are refused by their size.)
#[diagnostic::on_unimplemented(
    message = "a task function cannot capture variables: pass them as arguments",
    label = "this captures what lies outside of it"
)]
pub trait CapturesNothing: Copy + Send + Sync + 'static {}

#[diagnostic::do_not_recommend]
impl<F: Copy + Send + Sync + 'static> CapturesNothing for F {}

/// What a function may return. See [`Plain`] and [`Fallible`].
pub trait TaskOutput<M> {
    /// The type on success.
    type Value: Data;

    /// Success or the error.
    ///
    /// # Errors
    /// If it is one.
    fn into_result(self) -> Result<Self::Value, TaskError>;
}

/// Marks functions that return their result.
pub struct Plain;
/// Marks functions that return a `Result`, whose `Err` errs the future.
pub struct Fallible;

impl<T: Data> TaskOutput<Plain> for T {
    type Value = T;

    fn into_result(self) -> Result<T, TaskError> {
        Ok(self)
    }
}

impl<T: Data, E: IntoTaskError> TaskOutput<Fallible> for Result<T, E> {
    type Value = T;

    fn into_result(self) -> Result<T, TaskError> {
        self.map_err(IntoTaskError::into_task_error)
    }
}

/// What can be the `E` of a task's `Result<T, E>`: anything that `?` turns into a boxed error
/// (errors, `String`, `&str`, boxed errors).
pub trait IntoTaskError {
    /// Its message and those of its sources.
    fn into_task_error(self) -> TaskError;
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> IntoTaskError for E {
    fn into_task_error(self) -> TaskError {
        let error = self.into();
        match error.downcast::<crate::Error>() {
            // What failed on another worker keeps its story.
            Ok(error) => match *error {
                crate::Error::Task(error) => error,
                error => TaskError::failed(&error),
            },
            Err(error) => TaskError::failed(&*error),
        }
    }
}

/// Passes arguments `Self` for the parameters `P`.
pub trait IntoArgs<P> {
    /// How the worker reads them back.
    type Repr: ReadArgs<P>;

    /// Writes them down.
    ///
    /// # Errors
    /// If one cannot be serialized.
    fn write(self, encoder: &mut ArgEncoder) -> Result<(), TaskError>;
}

/// A way to read parameters `P`.
pub trait ReadArgs<P>: Send + Sync + 'static {
    /// Reads them.
    ///
    /// # Errors
    /// If one cannot be read.
    fn read(decoder: &mut ArgDecoder<'_>) -> Result<P, TaskError>;
}

/// Names the entry of function `F` with parameters `P`, read by `R`, of kind `M`.
pub struct Entry<F, P, R, M>(PhantomData<(F, P, R, M)>);

/// A type that has an entry.
pub trait HasEntry {
    /// The entry: a constant in the read-only memory of its module.
    const ENTRY: &'static TaskEntry;
}

impl<F: TaskFn<P, M>, P, R: ReadArgs<P>, M> HasEntry for Entry<F, P, R, M> {
    const ENTRY: &'static TaskEntry = &TaskEntry::new(type_name::<F>, call::<F, P, R, M>);
}

/// The entry of a function. Takes the function to show that one exists, and to refuse captures
/// where it is written.
pub(crate) fn entry_of<F, P, R, M>(_: F) -> &'static TaskEntry
where
    F: TaskFn<P, M>,
    R: ReadArgs<P>,
    Entry<F, P, R, M>: HasEntry,
{
    const { assert!(size_of::<F>() == 0, "a task function cannot capture variables: pass them as arguments") };
    <Entry<F, P, R, M> as HasEntry>::ENTRY
}

fn call<F: TaskFn<P, M>, P, R: ReadArgs<P>, M>(decoder: &mut ArgDecoder<'_>) -> Result<Value, TaskError> {
    const { assert!(size_of::<F>() == 0, "a task function cannot capture variables: pass them as arguments") };
    // SAFETY: `F` has no bytes, so that reading one touches no memory and any aligned pointer will
    // do; that the type is inhabited is known because a value of it was handed to `submit` by
    // whoever named this entry, and that `F` is `Copy` says that another one may be had.
    let function: F = unsafe { std::ptr::NonNull::<F>::dangling().read() };
    let parameters = R::read(decoder)?;
    function.invoke(parameters).map(Value::new)
}

macro_rules! arities {
    ($(($($P:ident $A:ident $R:ident $i:tt),*))*) => {$(
        impl<Func, Out, Mark, $($P,)*> TaskFn<($($P,)*), Mark> for Func
        where
            Func: Fn($($P),*) -> Out + CapturesNothing,
            Out: TaskOutput<Mark>,
        {
            type Output = Out::Value;

            #[allow(non_snake_case, reason = "the parameters are named after their types")]
            fn invoke(self, ($($P,)*): ($($P,)*)) -> Result<Out::Value, TaskError> {
                self($($P),*).into_result()
            }
        }

        impl<$($P, $A: IntoArg<$P>,)*> IntoArgs<($($P,)*)> for ($($A,)*) {
            type Repr = ($($A::Repr,)*);

            #[allow(unused_variables, reason = "there may be no arguments")]
            fn write(self, encoder: &mut ArgEncoder) -> Result<(), TaskError> {
                $(self.$i.write(encoder)?;)*
                Ok(())
            }
        }

        impl<$($P, $R: ReadArg<$P>,)*> ReadArgs<($($P,)*)> for ($($R,)*) {
            #[allow(unused_variables, reason = "there may be no arguments")]
            fn read(decoder: &mut ArgDecoder<'_>) -> Result<($($P,)*), TaskError> {
                Ok(($($R::read(decoder)?,)*))
            }
        }
    )*};
}

arities! {
    ()
    (P0 A0 R0 0)
    (P0 A0 R0 0, P1 A1 R1 1)
    (P0 A0 R0 0, P1 A1 R1 1, P2 A2 R2 2)
    (P0 A0 R0 0, P1 A1 R1 1, P2 A2 R2 2, P3 A3 R3 3)
    (P0 A0 R0 0, P1 A1 R1 1, P2 A2 R2 2, P3 A3 R3 3, P4 A4 R4 4)
    (P0 A0 R0 0, P1 A1 R1 1, P2 A2 R2 2, P3 A3 R3 3, P4 A4 R4 4, P5 A5 R5 5)
    (P0 A0 R0 0, P1 A1 R1 1, P2 A2 R2 2, P3 A3 R3 3, P4 A4 R4 4, P5 A5 R5 5, P6 A6 R6 6)
    (P0 A0 R0 0, P1 A1 R1 1, P2 A2 R2 2, P3 A3 R3 3, P4 A4 R4 4, P5 A5 R5 5, P6 A6 R6 6, P7 A7 R7 7)
}
