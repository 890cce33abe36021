//! Python pickles read as data: containers, numbers, texts and the tensors that PyTorch saves. Nothing is ever executed.
//!
//! A pickle is a program for a small stack machine, and two of its instructions call whatever it names. Here those two
//! know a closed list of names, each of which makes a value of this module; any other name, and any instruction that the
//! list has no use for, is refused before anything else is read. Sizes and depths are bounded, so that a small file can't
//! stand for a large value.

use std::path::Path;

use crate::{Error, Result};

/// Instructions read at most.
const MAX_STEPS: usize = 4_000_000;
/// Values and bytes of text that a pickle may stand for once shared parts are written out.
const MAX_VALUES: usize = 1_000_000;
/// Containers within containers.
const MAX_DEPTH: usize = 64;
/// Dimensions of a tensor.
const MAX_RANK: usize = 8;
/// Bytes of a storage's name, which every tensor of it repeats; PyTorch's are counts.
const MAX_KEY: usize = 64;

/// What a pickle holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`.
    Nothing,
    /// `True` or `False`.
    Flag(bool),
    /// A whole number.
    Whole(i64),
    /// A float.
    Real(f64),
    /// A string.
    Text(String),
    /// A list or tuple.
    List(Vec<Value>),
    /// A dict or `OrderedDict`, in its order.
    Map(Vec<(Value, Value)>),
    /// A tensor, whose numbers are in a storage outside the pickle.
    Tensor(Strided),
}

/// A tensor as PyTorch describes it: a view of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strided {
    /// Name of the storage.
    pub storage: String,
    /// Element type, as the storage's class is called: `FloatStorage`.
    pub class: String,
    /// Elements of the storage.
    pub elements: usize,
    /// First element of the view.
    pub offset: usize,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Elements between neighbours along each dimension.
    pub strides: Vec<usize>,
}

/// The callables that a pickle may name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Callable {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    /// A storage class: never called, only named.
    Storage(String),
}

impl Callable {
    fn named(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", class) => {
                let known = ["Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"];
                let kind = class.strip_suffix("Storage")?;
                known.contains(&kind).then(|| Self::Storage(class.to_owned()))
            }
            _ => None,
        }
    }
}

/// A value under construction. Containers hold the numbers of other objects, because a pickle fills them later and may
/// share them.
#[derive(Debug, Clone)]
enum Object {
    Plain(Value),
    List(Vec<usize>),
    Map(Vec<(usize, usize)>),
    Callable(Callable),
    Storage { class: String, key: String, elements: usize },
}

/// Reads the pickle `bytes`; `path` only names it in errors.
///
/// *Errors*: [`Error::Input`] that names the callable or instruction which a pickle of plain data doesn't have, or where
/// the pickle ends too early.
pub fn read(path: &Path, bytes: &[u8]) -> Result<Value> {
    let mut machine = Machine { bytes, at: 0, objects: vec![], stack: vec![], marks: vec![], memo: vec![] };
    let top = machine.run().map_err(|problem| refused(path, problem))?;
    let mut budget = MAX_VALUES;
    machine.value(top, MAX_DEPTH, &mut budget).map_err(|problem| refused(path, problem))
}

/// A problem, and whether it is one of safety.
enum Problem {
    Code(String),
    Damaged(String),
}

fn refused(path: &Path, problem: Problem) -> Error {
    match problem {
        Problem::Code(what) => Error::file(path, format!("expected a pickle of plain tensors, got one that {what}"))
            .hint("it is refused and not run; save plain tensors with `torch.save`, or convert to safetensors"),
        Problem::Damaged(what) => Error::file(path, format!("expected a pickle, got {what}")),
    }
}

fn damaged<T>(what: impl Into<String>) -> Result<T, Problem> {
    Err(Problem::Damaged(what.into()))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    objects: Vec<Object>,
    stack: Vec<usize>,
    marks: Vec<usize>,
    memo: Vec<Option<usize>>,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<usize, Problem> {
        for _ in 0..MAX_STEPS {
            let instruction = self.byte()?;
            match instruction {
                b'.' => return self.pop(),
                // PROTO and FRAME say how the rest is packed, which changes nothing here.
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'N' => self.plain(Value::Nothing),
                0x88 => self.plain(Value::Flag(true)),
                0x89 => self.plain(Value::Flag(false)),
                b'K' => {
                    let value = self.little(1)?;
                    self.plain(Value::Whole(value));
                }
                b'M' => {
                    let value = self.little(2)?;
                    self.plain(Value::Whole(value));
                }
                b'J' => {
                    let value = self.little(4)?;
                    self.plain(Value::Whole(i64::from(value as u32 as i32)));
                }
                0x8a => {
                    let value = self.long()?;
                    self.plain(Value::Whole(value));
                }
                b'G' => {
                    let bytes = self.take(8)?.try_into().map_err(|_| Problem::Damaged("a short float".into()))?;
                    self.plain(Value::Real(f64::from_be_bytes(bytes)));
                }
                b'X' => self.text(4)?,
                0x8c => self.text(1)?,
                b'(' => self.marks.push(self.stack.len()),
                b')' => self.push(Object::List(vec![])),
                b']' => self.push(Object::List(vec![])),
                b'}' => self.push(Object::Map(vec![])),
                b't' | b'l' => {
                    let items = self.since_mark()?;
                    self.push(Object::List(items));
                }
                0x85..=0x87 => {
                    let count = usize::from(instruction - 0x84);
                    let items = self.last(count)?;
                    self.push(Object::List(items));
                }
                b'a' => self.append(1)?,
                b'e' => {
                    let items = self.since_mark()?;
                    self.extend(items)?;
                }
                b's' => {
                    let items = self.last(2)?;
                    self.set(&items)?;
                }
                b'u' => {
                    let items = self.since_mark()?;
                    self.set(&items)?;
                }
                b'q' => {
                    let slot = self.little(1)?;
                    self.remember(slot)?;
                }
                b'r' => {
                    let slot = self.little(4)?;
                    self.remember(slot)?;
                }
                0x94 => self.remember(self.memo.len() as i64)?,
                b'h' => {
                    let slot = self.little(1)?;
                    self.recall(slot)?;
                }
                b'j' => {
                    let slot = self.little(4)?;
                    self.recall(slot)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.name(&module, &name)?;
                }
                0x93 => {
                    let names = self.last(2)?;
                    let [module, name] = [names[0], names[1]].map(|at| match &self.objects[at] {
                        Object::Plain(Value::Text(text)) => text.clone(),
                        _ => String::new(),
                    });
                    self.name(&module, &name)?;
                }
                b'Q' => self.storage()?,
                b'R' => self.call()?,
                b'b' => self.state()?,
                other => return Err(Problem::Code(format!("has the instruction {other:#04x}"))),
            }
        }
        damaged(format!("more than {MAX_STEPS} instructions"))
    }

    fn byte(&mut self) -> Result<u8, Problem> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, count: usize) -> Result<&[u8], Problem> {
        let taken = self.at.checked_add(count).and_then(|end| self.bytes.get(self.at..end));
        match taken {
            Some(taken) => {
                self.at += count;
                Ok(taken)
            }
            None => damaged(format!("one that is cut off at byte {}", self.bytes.len())),
        }
    }

    /// An unsigned little-endian number of at most four bytes.
    fn little(&mut self, count: usize) -> Result<i64, Problem> {
        Ok(self.take(count)?.iter().rev().fold(0, |value, byte| (value << 8) | i64::from(*byte)))
    }

    /// A signed little-endian number with its length in front.
    fn long(&mut self) -> Result<i64, Problem> {
        let count = usize::from(self.byte()?);
        let bytes = self.take(count)?;
        if count > 8 {
            return damaged(format!("a number of {count} bytes"));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut whole = [if negative { 0xff } else { 0 }; 8];
        whole[..count].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(whole))
    }

    fn text(&mut self, width: usize) -> Result<(), Problem> {
        let count = self.little(width)? as usize;
        let text = std::str::from_utf8(self.take(count)?).map(str::to_owned);
        let Ok(text) = text else { return damaged("a string that is not UTF-8") };
        self.plain(Value::Text(text));
        Ok(())
    }

    fn line(&mut self) -> Result<String, Problem> {
        let rest = &self.bytes[self.at..];
        let Some(length) = rest.iter().take(256).position(|byte| *byte == b'\n') else {
            return damaged("a name without an end");
        };
        let line = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.at += length + 1;
        Ok(line)
    }

    fn push(&mut self, object: Object) {
        self.stack.push(self.objects.len());
        self.objects.push(object);
    }

    fn plain(&mut self, value: Value) {
        self.push(Object::Plain(value));
    }

    fn pop(&mut self) -> Result<usize, Problem> {
        // What lies below a mark belongs to an outer construction.
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => self.stack.pop().map_or_else(|| damaged("an empty stack"), Ok),
            false => damaged("an instruction without its values"),
        }
    }

    fn last(&mut self, count: usize) -> Result<Vec<usize>, Problem> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        Ok(items)
    }

    fn since_mark(&mut self) -> Result<Vec<usize>, Problem> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => damaged("an instruction without its mark"),
        }
    }

    fn top(&self) -> Result<usize, Problem> {
        self.stack.last().copied().map_or_else(|| damaged("an empty stack"), Ok)
    }

    fn append(&mut self, count: usize) -> Result<(), Problem> {
        let items = self.last(count)?;
        self.extend(items)
    }

    fn extend(&mut self, items: Vec<usize>) -> Result<(), Problem> {
        let top = self.top()?;
        match &mut self.objects[top] {
            Object::List(list) => list.extend(items),
            _ => return damaged("items for what is no list"),
        }
        Ok(())
    }

    fn set(&mut self, items: &[usize]) -> Result<(), Problem> {
        let top = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.objects[top] {
            Object::Map(map) if rest.is_empty() => map.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            _ => return damaged("items for what is no dict"),
        }
        Ok(())
    }

    fn remember(&mut self, slot: i64) -> Result<(), Problem> {
        let top = self.top()?;
        let slot = slot as usize;
        // Slots are given out in order; a far one would only make the table long.
        if slot > self.objects.len() {
            return damaged(format!("the memo slot {slot}, out of order"));
        }
        if self.memo.len() <= slot {
            self.memo.resize(slot + 1, None);
        }
        self.memo[slot] = Some(top);
        Ok(())
    }

    fn recall(&mut self, slot: i64) -> Result<(), Problem> {
        match self.memo.get(slot as usize).copied().flatten() {
            Some(at) => self.stack.push(at),
            None => return damaged(format!("the memo slot {slot}, which is empty")),
        }
        Ok(())
    }

    fn name(&mut self, module: &str, name: &str) -> Result<(), Problem> {
        match Callable::named(module, name) {
            Some(callable) => self.push(Object::Callable(callable)),
            None => return Err(Problem::Code(format!("names `{module}.{name}`"))),
        }
        Ok(())
    }

    /// `('storage', class, key, device, elements)`.
    fn storage(&mut self) -> Result<(), Problem> {
        let id = self.pop()?;
        let storage = match &self.objects[id] {
            Object::List(parts) => match parts.iter().map(|at| &self.objects[*at]).collect::<Vec<_>>()[..] {
                [
                    Object::Plain(Value::Text(tag)),
                    Object::Callable(Callable::Storage(class)),
                    Object::Plain(Value::Text(key)),
                    _,
                    Object::Plain(Value::Whole(elements)),
                ] if tag == "storage" => usize::try_from(*elements).ok().map(|elements| Object::Storage {
                    class: class.clone(),
                    key: key.clone(),
                    elements,
                }),
                _ => None,
            },
            _ => None,
        };
        match storage {
            Some(Object::Storage { key, .. }) if key.len() > MAX_KEY => {
                return damaged(format!("a storage with a name of more than {MAX_KEY} bytes"));
            }
            Some(storage) => self.push(storage),
            None => return damaged("a reference that is no tensor storage"),
        }
        Ok(())
    }

    fn call(&mut self) -> Result<(), Problem> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let Object::Callable(callable) = self.objects[callable].clone() else {
            return Err(Problem::Code("calls a value".into()));
        };
        let Object::List(arguments) = &self.objects[arguments] else { return damaged("arguments that are no tuple") };
        let made = match (&callable, arguments.as_slice()) {
            (Callable::OrderedDict, []) => Some(Object::Map(vec![])),
            (Callable::RebuildTensor, [storage, offset, shape, strides, ..]) => {
                self.tensor(*storage, *offset, *shape, *strides).map(Object::Plain)
            }
            (Callable::RebuildParameter, [tensor, ..]) => match &self.objects[*tensor] {
                Object::Plain(tensor @ Value::Tensor(_)) => Some(Object::Plain(tensor.clone())),
                _ => None,
            },
            (Callable::Storage(class), _) => return Err(Problem::Code(format!("calls `torch.{class}`"))),
            _ => None,
        };
        match made {
            Some(made) => self.push(made),
            None => return damaged(format!("{callable:?} with other arguments")),
        }
        Ok(())
    }

    fn tensor(&self, storage: usize, offset: usize, shape: usize, strides: usize) -> Option<Value> {
        let Object::Storage { class, key, elements } = &self.objects[storage] else { return None };
        let whole = |at: &usize| match &self.objects[*at] {
            Object::Plain(Value::Whole(value)) => usize::try_from(*value).ok(),
            _ => None,
        };
        let wholes = |at: usize| match &self.objects[at] {
            Object::List(items) => items.iter().map(whole).collect::<Option<Vec<usize>>>(),
            _ => None,
        };
        let (shape, strides) = (wholes(shape)?, wholes(strides)?);
        (shape.len() == strides.len() && shape.len() <= MAX_RANK).then(|| {
            Some(Value::Tensor(Strided {
                storage: key.clone(),
                class: class.clone(),
                elements: *elements,
                offset: whole(&offset)?,
                shape,
                strides,
            }))
        })?
    }

    /// Attributes of an `OrderedDict`, which PyTorch's state dicts have: dropped.
    fn state(&mut self) -> Result<(), Problem> {
        let (_, of) = (self.pop()?, self.top()?);
        match &self.objects[of] {
            Object::Map(_) => Ok(()),
            _ => Err(Problem::Code("sets the state of an object".into())),
        }
    }

    fn value(&self, at: usize, depth: usize, budget: &mut usize) -> Result<Value, Problem> {
        let object = &self.objects[at];
        let cost = 1 + if let Object::Plain(Value::Text(text)) = object { text.len() } else { 0 };
        let (Some(deeper), Some(left)) = (depth.checked_sub(1), budget.checked_sub(cost)) else {
            return damaged(format!("more than {MAX_VALUES} values or {MAX_DEPTH} levels"));
        };
        *budget = left;
        match object {
            Object::Plain(value) => Ok(value.clone()),
            Object::List(items) => {
                Ok(Value::List(items.iter().map(|at| self.value(*at, deeper, budget)).collect::<Result<_, _>>()?))
            }
            Object::Map(items) => {
                let pair = |(key, value): &(usize, usize), budget: &mut usize| {
                    Ok((self.value(*key, deeper, budget)?, self.value(*value, deeper, budget)?))
                };
                Ok(Value::Map(items.iter().map(|item| pair(item, budget)).collect::<Result<_, _>>()?))
            }
            Object::Callable(callable) => Err(Problem::Code(format!("holds {callable:?}"))),
            Object::Storage { .. } => damaged("a storage without a tensor"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(bytes: &[u8]) -> Result<Value, String> {
        read(Path::new("x.pt"), bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn containers_and_numbers_are_read() {
        // pickle.dumps({"a": [1, -2, 300, 2.5, None, True]}, protocol=2)
        let bytes = b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01G@\x04\x00\x00\x00\x00\x00\x00N\x88es.";
        let list = vec![
            Value::Whole(1),
            Value::Whole(-2),
            Value::Whole(300),
            Value::Real(2.5),
            Value::Nothing,
            Value::Flag(true),
        ];
        assert_eq!(parsed(bytes), Ok(Value::Map(vec![(Value::Text("a".into()), Value::List(list))])));
    }

    #[test]
    fn whatever_could_run_is_refused_by_name() {
        // `os.system("true")`, spelt as GLOBAL, as STACK_GLOBAL and as INST.
        for (bytes, expected) in [
            (&b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."[..], "names `os.system`"),
            (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.", "names `posix.system`"),
            (b"(S'true'\nios\nsystem\n.", "instruction 0x53"),
            (b"\x80\x02cbuiltins\neval\n.", "names `builtins.eval`"),
            (b"\x80\x02ctorch\nload\n.", "names `torch.load`"),
            (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls `torch.FloatStorage`"),
            (b"\x80\x02ctorch\nFloatStorage\n.", "holds Storage"),
            (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "instruction 0x81"),
            (b"\x80\x02]K\x01\x85b.", "sets the state"),
        ] {
            let error = parsed(bytes).unwrap_err();
            assert!(error.contains(expected) && error.contains("x.pt"), "{expected:?} not in {error:?}");
        }
    }

    #[test]
    fn small_files_do_not_stand_for_large_values() {
        // Twenty lists, each holding the one before it ten times.
        let mut bytes = b"\x80\x02]q\x00".to_vec();
        for level in 0..20u8 {
            bytes.extend([b']', b'q', level + 1, b'(']);
            bytes.extend([b'h', level].repeat(10));
            bytes.push(b'e');
        }
        bytes.push(b'.');
        assert!(parsed(&bytes).unwrap_err().contains("more than"));
        // A list that holds itself.
        assert!(parsed(b"\x80\x02]q\x00h\x00a.").unwrap_err().contains("levels"));
        assert!(parsed(b"\x80\x02Nr\xff\xff\xff\x7f.").unwrap_err().contains("memo slot"));
    }

    #[test]
    fn a_storage_s_name_is_short_because_every_tensor_of_it_repeats_it() {
        let tensor = |length: usize| {
            let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
            let (tag, key, device) = (text("storage"), text(&"0".repeat(length)), text("cpu"));
            let storage = [b"(", &tag[..], b"ctorch\nFloatStorage\n", &key, &device, b"K\x01tQ"].concat();
            let view = b"K\x00K\x01\x85K\x01\x85tR.";
            parsed(&[b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(", &storage[..], view].concat())
        };
        let Ok(Value::Tensor(made)) = tensor(MAX_KEY) else { panic!("{:?}", tensor(MAX_KEY)) };
        assert_eq!((made.storage.len(), made.shape), (MAX_KEY, vec![1]));
        for length in [MAX_KEY + 1, 1 << 20] {
            let error = tensor(length).unwrap_err();
            assert!(error.contains("x.pt: expected a pickle, got a storage with a name of more than 64"), "{error}");
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01es.";
        for end in 0..bytes.len() {
            assert!(parsed(&bytes[..end]).is_err(), "{end}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(0u8..=255, 0..200)) {
            let _ = parsed(&bytes);
        }
    }
}
