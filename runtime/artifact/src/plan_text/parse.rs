//! Text to plan.

use super::PlanError;
use super::lex::{Kind, Token, lex};
use crate::plan::*;
use crate::plan_check;
use std::collections::HashMap;

type Result<T> = std::result::Result<T, PlanError>;

/// Reads the text form of a plan and checks it with [`plan_check::problems`].
pub fn parse(text: &str) -> Result<Plan> {
    let mut p = Parser { text, tokens: lex(text)?, at: 0 };
    let plan = p.plan()?;
    let problems = plan_check::problems(&plan);
    if problems.is_empty() { Ok(plan) } else { Err(PlanError::invalid(&problems)) }
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
}

/// What names stand for.
#[derive(Default)]
struct Names {
    states: HashMap<String, u32>,
    weights: HashMap<String, u32>,
    kernels: HashMap<String, u32>,
}

impl Parser<'_> {
    fn plan(&mut self) -> Result<Plan> {
        self.keyword("plan")?;
        let at = self.at;
        let version = self.whole::<u32>()?;
        if version != super::VERSION {
            self.at = at;
            return self.fail(&format!("version {version} of the plan text is unknown"), "this is version 1");
        }
        self.keyword("vocab")?;
        let mut plan = Plan { vocab: self.whole()?, states: vec![], weights: vec![], kernels: vec![], buckets: vec![] };
        let mut names = Names::default();
        while !matches!(self.peek(), Kind::End) {
            let word = self.word("state, weight, kernel or bucket")?;
            let at = self.at;
            match word.as_str() {
                "state" => {
                    let s = self.state()?;
                    self.define(&mut names.states, s.name.clone(), at)?;
                    plan.states.push(s);
                }
                "weight" => {
                    let w = self.weight()?;
                    self.define(&mut names.weights, w.name.clone(), at)?;
                    plan.weights.push(w);
                }
                "kernel" => {
                    let k = self.kernel()?;
                    self.define(&mut names.kernels, k.symbol.clone(), at)?;
                    plan.kernels.push(k);
                }
                "bucket" => plan.buckets.push(self.bucket(&names, &plan.buckets)?),
                _ => {
                    self.at -= 1;
                    return self.fail(&format!("unknown item `{word}`"), "items are state, weight, kernel and bucket");
                }
            }
        }
        Ok(plan)
    }

    fn state(&mut self) -> Result<State> {
        let name = self.name()?;
        let kind = match self.word("paged, every, window or fixed")?.as_str() {
            "paged" => StateKind::Paged,
            "every" => StateKind::PagedEvery { every: self.whole()? },
            "window" => StateKind::Window { window: self.whole()? },
            "fixed" => StateKind::Fixed { rows: self.whole()? },
            _ => {
                self.at -= 1;
                return self.fail("unknown kind of state", "kinds are paged, every N, window N and fixed N");
            }
        };
        self.keyword("row")?;
        Ok(State { name, kind, row_bytes: self.whole()? })
    }

    fn weight(&mut self) -> Result<Weight> {
        let name = self.name()?;
        self.keyword("bytes")?;
        let bytes = self.whole()?;
        let many = matches!(self.peek(), Kind::Word(w) if w == "matrices");
        self.at += usize::from(many);
        let matrices = if many { self.whole()? } else { 1 };
        let note = self.optional_text("note")?;
        Ok(Weight { name, bytes, matrices, note })
    }

    fn kernel(&mut self) -> Result<Kernel> {
        let symbol = self.name()?;
        self.keyword("family")?;
        let family = self.name()?;
        self.keyword("phases")?;
        let phases = self.whole()?;
        let saturates = if matches!(self.peek(), Kind::Word(w) if w == "saturates") {
            self.at += 1;
            self.whole()?
        } else {
            0
        };
        self.keyword("bytes")?;
        let bytes = self.terms()?;
        self.keyword("operations")?;
        Ok(Kernel { symbol, family, phases, saturates, bytes, operations: self.terms()? })
    }

    fn bucket(&mut self, names: &Names, earlier: &[BucketPlan]) -> Result<BucketPlan> {
        let name = self.name()?;
        let range = |p: &mut Self, word| {
            p.keyword(word)?;
            p.range()
        };
        let assumptions = Assumptions {
            tokens: range(self, "tokens")?,
            queries: range(self, "queries")?,
            context: range(self, "context")?,
            pages: range(self, "pages")?,
        };
        if matches!(self.peek(), Kind::Word(w) if w == "as") {
            self.at += 1;
            let like = self.name()?;
            let Some(b) = earlier.iter().find(|b| b.name == like) else {
                self.at -= 1;
                return self
                    .fail(&format!("there is no bucket {like:?} before this one"), "`as` names an earlier bucket");
            };
            return Ok(BucketPlan { name, assumptions, ..b.clone() });
        }
        self.mark("{")?;
        let (mut buffers, mut actions) = (vec![], vec![]);
        while !self.eat("}") {
            match self.word("buffer, launch, copy, collective, wait or `}`")?.as_str() {
                "buffer" => buffers.push(self.buffer(buffers.len())?),
                "launch" => actions.push(Action::Launch(self.launch(names)?)),
                "copy" => {
                    let from = self.arg(names)?;
                    self.mark("->")?;
                    let to = self.arg(names)?;
                    self.keyword("bytes")?;
                    actions.push(Action::Copy { from, to, bytes: self.whole()? });
                }
                "collective" => {
                    let kind = self.name()?;
                    let buffer = self.arg(names)?;
                    self.keyword("bytes")?;
                    actions.push(Action::Collective { kind, buffer, bytes: self.whole()? });
                }
                "wait" => actions.push(Action::Wait { queue: self.whole()? }),
                _ => {
                    self.at -= 1;
                    return self.fail("unknown action", "a bucket holds buffer, launch, copy, collective and wait");
                }
            }
        }
        Ok(BucketPlan { name, assumptions, buffers, actions })
    }

    fn buffer(&mut self, expected: usize) -> Result<Buffer> {
        self.mark("%")?;
        let at = self.at;
        if self.whole::<usize>()? != expected {
            self.at = at;
            return self.fail(&format!("this is buffer %{expected}"), "buffers are numbered from 0 in order");
        }
        let word = self.word("an arena")?;
        let symbol = Symbol::ALL.into_iter().find(|s| s.name() == word);
        let arena = match (word.as_str(), symbol) {
            ("fixed", _) => Arena::Fixed,
            ("TP", _) => Arena::PerTokenPage,
            (_, Some(symbol)) => Arena::Per(symbol),
            _ => {
                self.at -= 1;
                return self.fail("unknown arena", "arenas are fixed, T, S, P, R, C and TP");
            }
        };
        self.keyword("offset")?;
        let offset = self.whole()?;
        self.keyword("bytes")?;
        Ok(Buffer { arena, offset, bytes: self.whole()? })
    }

    fn launch(&mut self, names: &Names) -> Result<Launch> {
        let kernel = self.defined(&names.kernels, "kernel")?;
        self.mark("(")?;
        let mut args = vec![];
        while !self.eat(")") {
            if !args.is_empty() {
                self.mark(",")?;
            }
            args.push(self.arg(names)?);
        }
        let label = self.optional_text("label")?;
        Ok(Launch { kernel, args, label })
    }

    fn arg(&mut self, names: &Names) -> Result<Arg> {
        if self.eat("%") {
            let index = self.whole()?;
            return Ok(Arg::Buffer { index, offset: self.offset()? });
        }
        if self.eat("$") {
            let index = self.defined(&names.weights, "weight")?;
            return Ok(Arg::Weight { index, offset: self.offset()? });
        }
        if self.eat("@") {
            return Ok(Arg::State(self.defined(&names.states, "state")?));
        }
        let word = self.word("an argument")?;
        if word == "logits" {
            return Ok(Arg::Logits);
        }
        if let Some(i) = Input::ALL.into_iter().find(|i| i.name() == word) {
            return Ok(Arg::Input(i));
        }
        self.at -= 1;
        self.fail(
            "unknown argument",
            "arguments are %buffer, $weight, @state, ids, pos, seq, pages, page_start, rows and logits",
        )
    }

    fn offset(&mut self) -> Result<u64> {
        if self.eat("+") { self.whole() } else { Ok(0) }
    }

    fn range(&mut self) -> Result<Range> {
        let min = self.whole()?;
        self.mark("..")?;
        if *self.peek() == Kind::Word("max".to_owned()) {
            self.at += 1;
            return Ok(Range { min, max: u32::MAX });
        }
        Ok(Range { min, max: self.whole()? })
    }

    fn terms<const N: usize>(&mut self) -> Result<[f64; N]> {
        let mut terms = [0.0; N];
        for (i, term) in terms.iter_mut().enumerate() {
            self.mark(if i == 0 { "[" } else { "," })?;
            *term = self.number()?;
        }
        self.mark("]")?;
        Ok(terms)
    }

    fn define(&self, names: &mut HashMap<String, u32>, name: String, token: usize) -> Result<()> {
        let index = names.len() as u32;
        if names.insert(name, index).is_some() {
            return Err(PlanError::at(
                self.text,
                self.tokens[token].start,
                "this name is already taken",
                "names are unique",
            ));
        }
        Ok(())
    }

    fn defined(&mut self, names: &HashMap<String, u32>, what: &str) -> Result<u32> {
        let name = self.name()?;
        if let Some(i) = names.get(&name) {
            return Ok(*i);
        }
        self.at -= 1;
        self.fail(&format!("there is no {what} {name:?}"), "items come before the buckets that use them")
    }

    fn peek(&self) -> &Kind {
        &self.tokens[self.at].kind
    }

    fn fail<T>(&self, message: &str, help: &'static str) -> Result<T> {
        Err(PlanError::at(self.text, self.tokens[self.at].start, message, help))
    }

    fn unexpected<T>(&self, wanted: &str) -> Result<T> {
        self.fail(
            &format!("expected {wanted}, found {}", self.peek().describe()),
            "see the form of a plan in its documentation",
        )
    }

    fn keyword(&mut self, word: &str) -> Result<()> {
        if matches!(self.peek(), Kind::Word(w) if w == word) {
            self.at += 1;
            return Ok(());
        }
        self.unexpected(&format!("`{word}`"))
    }

    fn word(&mut self, wanted: &str) -> Result<String> {
        if let Kind::Word(w) = self.peek() {
            let w = w.clone();
            self.at += 1;
            return Ok(w);
        }
        self.unexpected(wanted)
    }

    fn name(&mut self) -> Result<String> {
        if let Kind::Word(w) | Kind::Text(w) = self.peek() {
            let w = w.clone();
            self.at += 1;
            return Ok(w);
        }
        self.unexpected("a name")
    }

    fn optional_text(&mut self, word: &str) -> Result<String> {
        if !matches!(self.peek(), Kind::Word(w) if w == word) {
            return Ok(String::new());
        }
        self.at += 1;
        self.name()
    }

    fn number(&mut self) -> Result<f64> {
        if let Kind::Number(n) = self.peek()
            && let Ok(x) = n.parse()
        {
            self.at += 1;
            return Ok(x);
        }
        self.unexpected("a number")
    }

    fn whole<N: std::str::FromStr>(&mut self) -> Result<N> {
        if let Kind::Number(n) = self.peek()
            && let Ok(x) = n.parse()
        {
            self.at += 1;
            return Ok(x);
        }
        self.unexpected(&format!("a whole number that fits {} bits", size_of::<N>() * 8))
    }

    fn eat(&mut self, mark: &str) -> bool {
        let found = matches!(self.peek(), Kind::Mark(m) if *m == mark);
        self.at += usize::from(found);
        found
    }

    fn mark(&mut self, mark: &str) -> Result<()> {
        if self.eat(mark) { Ok(()) } else { self.unexpected(&format!("`{mark}`")) }
    }
}
